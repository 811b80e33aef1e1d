"""A study of something that is no language model: the tutorial's task on images, as a plugin."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import gatework
from gatework import registry, tasks
from gatework.cli import main
from gatework.study.budget import apply_budget
from gatework.study.options import CompareOptions
from gatework.study.results import ResultStore
from gatework.study.single_run import run_one
from gatework.study.spec import StudySpec
from gatework.study.study import Study
from gatework.training.options import FitTraining, TrainerOptions
from gatework.training.recipe import Recipe
from tests.tasks.digits import write_plugin
from tests.training.runs import contents, differing, finish, stop_after_save

GRID = {
    "models": {
        "vit": {"name": "test_vit", "patch_size": 8, "depth": 1},
        "convnext": {"name": "test_convnext"},
    },
    "sizes": [32, 40],
    "seeds": [0],
    "setting": {"num_train": 32},
    "training": {"steps": 4, "batch_size": 8, "evaluations": 2},
    "resolutions": [32],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the plugin in it, which is loaded: the current one for all tests of this file."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.plugins, "_loaded_plugins", {})
        patch.setattr(tasks, "TASKS", dict(tasks.TASKS))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.chdir(folder)
        registry.load_plugins([write_plugin(folder)])
        yield folder
    del sys.modules["my_tasks"]


@pytest.fixture(scope="module")
def study(folder):
    """A study of two models at two sizes, executed in this process, which saves starting workers."""
    directory = folder / "runs"
    options = {**GRID, "plugins": ["my_tasks"], "output": directory, "progress": False}
    gatework.compare("digits", **options, executor="print")
    for run in StudySpec.read(directory).runs:
        result, executed = run_one(directory, run.run_id)
        assert (result["status"], executed) == ("finished", True), result["message"]
    return gatework.compare("digits", **options)


def test_nothing_is_trained_again_and_the_tables_have_the_words_of_the_task(study):
    assert (study.outcome.executed, study.outcome.finished) == (0, 4)
    assert list(study.runs.columns[:6]) == ["run_id", "setting", "model", "size", "learning_rate", "seed"]
    assert study.runs["training_images"].unique().tolist() == [32]
    assert (study.runs["images_per_second"] > 0).all()
    assert (study.runs["inference images_per_second at 32"] > 0).all()
    assert study.runs["flops_per_image"].nunique() == 4
    assert set(study.cells["size"]) == {32, 40}
    assert "state_bytes" not in study.runs
    head = (study.directory / "runs.csv").read_text().splitlines()[0].split(",")
    assert {"model", "size", "definition", "images_per_second"} <= set(head)
    assert not {"mixer", "width", "layers"} & set(head)
    assert "2 models, 1 setting, 2 sizes, 1 seed; runs: 4 finished" in repr(study)


def test_the_page_says_images_and_models(study):
    page = (study.directory / "report.html").read_text()
    start = page.index("<main") if "<main" in page else 0
    words = page[start : page.index("<script", start)]
    assert "How does it scale with resolution?" in words
    assert "scikit-learn's digits, 32 images to train on" in html.unescape(words)
    for foreign in ("mixer", "token", "decoding", "width "):
        assert foreign not in words.lower(), foreign
    for foreign in ("mixer", "token", "width"):
        assert foreign not in study.answer
    assert "at size" in study.answer


def test_its_page_is_written_without_the_plugin(study, tmp_path):
    """A study carries the words of its task: its code is not needed, and not run."""
    output = tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gatework", "report", str(study.directory), "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "How does it scale with resolution?" in output.read_text()


def test_budgets_count_in_its_unit(study, folder):
    runs = CompareOptions.of("digits", **GRID).grid()
    planned, sentence = apply_budget(runs, "images", 80, directory=folder, num_threads=1)
    assert {run.training["steps"] for run in planned} == {10}
    assert sentence == "80 training images for every model: 10 steps"
    planned, sentence = apply_budget(runs, "flops", None, directory=folder, num_threads=1)
    steps = {(run.candidate, run.size): run.training["steps"] for run in planned}
    assert steps["vit", 32] == steps["vit", 40] == 4
    assert 1 <= steps["convnext", 32] < 4
    assert "that vit needs for its steps, at each size and in each setting" in sentence


@pytest.mark.slow
def test_the_results_do_not_depend_on_who_executes_them(study, folder):
    """The same command with worker processes, killed half-way, ends with the very same numbers."""
    config = folder / "grid.yaml"
    config.write_text(json.dumps(GRID))
    again = folder / "again"
    command = [sys.executable, "-m", "gatework", "compare", "digits", "--plugin", "my_tasks"]
    command += ["--config", str(config), "--output", str(again), "--workers", str(os.cpu_count() or 1)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list(again.glob("results/*.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = {path.stem for path in again.glob("results/*.json")}
    assert stored
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"4 runs, {len(stored)} stored" in done.stderr
    one, other = (ResultStore(directory).read_all() for directory in (study.directory, again))
    assert {run: result["metrics"] for run, result in one.items()} == {
        run: result["metrics"] for run, result in other.items()
    }
    assert Study.open(again).spec.declaration.to_json() == study.spec.declaration.to_json()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--widths=[32]"],
            "task 'digits' has no option 'widths', which is of task 'recall', 'text'; its axes",
        ),
        (["--mixers=[attention]"], "its axes are models and sizes"),
        (["--decode_contexts=[8]"], "task 'digits' has no option 'decode_contexts'"),
        (["--recall={}"], "task 'digits' has no option 'recall', which is of task 'text'"),
        (["--modles=[test_vit]"], "task 'digits' has no option 'modles'; did you mean 'models'"),
        ([], "models must be given: timm's models"),
        (
            ["--models=[test_vitt]"],
            "test_vitt, default, size 32: name must be a model of timm, got 'test_vitt'",
        ),
        (["--models={a: {name: test_vit, depht: 2}}"], "a, default, size 32: "),
        (["--models=[test_convnext]", "--sizes=[0]"], "size must be at least 1, got 0"),
        (["--models=[test_convnext]", "--budget=tokens"], "budget"),
        (["--models=[test_convnext]", "--resolutions=[32,16]"], "resolutions must grow, got 16 after 32"),
        (["--models=[test_convnext]", "--setting.num_train=0"], "num_train must be a whole number from 1 to"),
        (["--models=[test_convnext]", "--model={size: 3}"], "model has no option 'size' in a comparison"),
        (["--config=axes.yaml"], "task 'digits' has no option 'widths'"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_trained(folder, capsys, words, message):
    (folder / "axes.yaml").write_text("models: [test_convnext]\nwidths: [32]\n")
    words = ["compare", "digits", "--plugin=my_tasks", "--output=wrong", "--workers=1", *words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "wrong").exists()


def test_fit_validate_and_predict_know_it(folder, capsys):
    model = "--model={name: test_convnext, size: 32}"
    words = ["fit", "--task=digits", "--plugin=my_tasks", model, "--setting.num_train=64", "--output=one"]
    words += ["--training.epochs=1", "--training.batch_size=16", "--training.evaluations=1"]
    words += ["--trainer.accelerator=cpu"]
    assert main(words) == 0
    result = json.loads((folder / "one" / "result.json").read_text())
    assert (result["steps"], result["images"]) == (4, 64)
    assert (folder / "one" / "metrics.csv").read_text().startswith("step,images,split,loss,")
    assert main(["validate", "--run=one", "--plugin=my_tasks", "--split=test"]) == 0
    assert f"accuracy     {result['test']['quality']:.4f}" in capsys.readouterr().out
    predict = ["predict", "--run=one", "--plugin=my_tasks", "--output=rows.jsonl"]
    assert main(predict) == 0
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    errors = [row for row in rows if row["label"] != row["prediction"]]
    assert len(errors) == round(300 * (1 - result["test"]["quality"]))
    assert main([*predict, "--only_errors=true"]) == 0
    assert "images of the test data" in capsys.readouterr().err
    assert [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()] == errors


def test_a_training_that_was_killed_goes_on_to_the_same_bits(folder):
    recipe = Recipe(
        "digits",
        setting={"num_train": 48},
        model={"name": "test_vit", "depth": 1, "patch_size": 8, "size": 32, "proj_drop_rate": 0.1},
        training=FitTraining(steps=12, batch_size=8, evaluations=3),
        trainer=TrainerOptions(accelerator="cpu", checkpoint_every=2, log_every=2),
    )
    assert finish(recipe, folder / "whole") == 0
    assert stop_after_save(recipe, folder / "parts", signal.SIGKILL) == -signal.SIGKILL
    assert finish(recipe, folder / "parts") == 0
    assert not differing(contents(folder / "whole"), contents(folder / "parts"))


@pytest.mark.bad_input
def test_a_plugin_with_half_a_task_is_named(folder, capsys):
    (folder / "half_tasks.py").write_text(
        "import gatework\nfrom gatework.tasks.task import Task\n"
        "class Half(Task):\n    quality = None\n"
        "gatework.register_task('half', Half)\n"
    )
    assert main(["compare", "half", "--plugin=half_tasks", "--output=wrong"]) == 2
    error = capsys.readouterr().err
    assert (
        "plugin 'half_tasks' cannot be imported: TypeError: task 'half' lacks declaration, describe" in error
    )
    assert error.count("\n") == 1
    assert not (folder / "wrong").exists()


@pytest.mark.bad_input
def test_a_module_without_a_part_is_named_before_anything_is_trained(folder, capsys):
    (folder / "mute_tasks.py").write_text(
        "import gatework, my_tasks\n"
        "class Mute(my_tasks.TaskModule):\n"
        "    def loss(self, batch):\n        return self.model(batch[0]).sum()\n"
        "class MuteTask(my_tasks.DigitsTask):\n"
        "    def module(self, model, training, learning_rate):\n"
        "        return Mute(model, training, learning_rate)\n"
        "gatework.register_task('mute', MuteTask)\n"
    )
    words = ["compare", "mute", "--plugin=mute_tasks", "--models=[test_convnext]", "--output=wrong"]
    assert main([*words, "--workers=1"]) == 2
    assert "Mute, the module of MuteTask, lacks score" in capsys.readouterr().err
    assert not (folder / "wrong").exists()


@pytest.mark.bad_input
def test_options_of_another_task_are_refused_by_name(folder, capsys):
    assert main(["predict", "--task=digits", "--plugin=my_tasks", "--prompt=x"]) == 2
    assert "--prompt is an option of task 'text', and this is task 'digits'" in capsys.readouterr().err
