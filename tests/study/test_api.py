"""The Python API: one call, tables, the answer, the page; the same results as the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import gatework
from gatework.cli import main
from gatework.files import FileError
from gatework.study.engine import plan_study
from gatework.study.results import METRICS, ResultStore
from gatework.study.study import Study, strip_timings
from tests.study.fakes import make_study, result_of

TINY = {
    "widths": [8],
    "setting": {"input_seq_len": 16, "num_kv_pairs": 2, "vocab_size": 32, "num_train": 64, "num_test": 16},
    "training": {"steps": 4, "batch_size": 8, "evaluations": 2},
}


@pytest.fixture(scope="module")
def called(tmp_path_factory, warm_workers):
    """A study made by the API, and its folder."""
    folder = tmp_path_factory.mktemp("api")
    study = gatework.compare(
        "recall",
        ["attention", "base_conv"],
        seeds=[0, 1],
        learning_rates=[0.01, 1e-05],
        workers=2,
        output=folder / "study",
        notes=("a note",),
        progress=False,
        **TINY,
    )
    return study, folder


def test_a_call_trains_and_returns_everything(called):
    study, folder = called
    assert study.outcome.exit_code == 0
    assert (study.outcome.executed, study.outcome.finished) == (8, 8)
    assert study.outcome.cores_busy > 0
    assert list(study.runs["status"]) == ["finished"] * 8
    assert len(study.cells) == 2
    assert set(study.cells["num_seeds"]) == {2}
    assert "accuracy" in study.answer
    assert study.report() == folder / "study" / "report.html"
    assert "a note" in study.spec.notes
    counts = "2 mixers, 1 setting, 1 width, 2 seeds; runs: 8 finished"
    assert repr(study) == f"Study({str(folder / 'study')!r}, task 'recall': {counts})"
    assert Study.open(folder / "study").outcome is None


def test_the_command_on_its_page_is_the_same_study(called, capsys):
    study, folder = called
    program, *arguments = shlex.split(study.spec.command)
    assert program == "gatework"
    assert main([*arguments, "--workers=2"]) == 0
    assert "8 runs, 8 stored, 0 to do" in capsys.readouterr().err
    again = Study.open(folder / "study")
    assert again.spec.runs == study.spec.runs
    assert again.spec.notes == study.spec.notes
    assert again.runs.equals(study.runs)


def test_the_command_line_gives_the_same_results(called, tmp_path, warm_workers):
    study, _ = called
    wanted = ("attention", 1, 0.01)
    (run,) = [run for run in study.spec.runs if (run.candidate, run.seed, run.learning_rate) == wanted]
    words = [f"--setting.{name}={value}" for name, value in TINY["setting"].items()]
    words += [f"--training.{name}={value}" for name, value in TINY["training"].items()]
    words += ["--mixers=[attention]", "--widths=[8]", "--seeds=[1]", "--learning_rates=[0.01]", "--workers=2"]
    assert main(["compare", "recall", *words, f"--output={tmp_path / 'cli'}"]) == 0
    ours = ResultStore(study.directory).read(run.run_id)
    theirs = ResultStore(tmp_path / "cli").read(run.run_id)
    assert strip_timings(ours) == strip_timings(theirs)


@pytest.fixture
def stored_study(tmp_path):
    """Two learning rates, three seeds; the rate that is better on test data is not the one to be reported."""
    study = make_study(tmp_path / "traces", learning_rates=[0.1, 0.2], seeds=[0, 1, 2], sizes=[8])
    plan_study(study, tmp_path / "study")
    store = ResultStore(tmp_path / "study")
    for run in study.runs:
        if (run.learning_rate, run.seed) == (0.2, 2):
            continue
        result = result_of(run.to_json())
        good = run.learning_rate == 0.1
        result["metrics"] |= {
            "quality": 0.5 + run.seed / 10 if good else 0.9,
            "validation_quality": 0.6 if good else 0.3,
        }
        result["cost"] |= {"state_bytes": None, "seconds": run.seed + 1.0}
        store.write(result)
    return Study.open(tmp_path / "study")


def test_the_table_of_runs(stored_study):
    runs = stored_study.runs
    assert len(runs) == 6
    assert list(runs.columns[:7]) == [
        "run_id",
        "setting",
        "mixer",
        "width",
        "learning_rate",
        "seed",
        "status",
    ]
    assert {*METRICS, "parameters", "seconds", "state_bytes", "slice num_kv_pairs=4"} < set(runs.columns)
    assert runs["status"].value_counts().to_dict() == {"finished": 5, "missing": 1}
    missing = runs[runs["status"] == "missing"].iloc[0]
    assert (missing["learning_rate"], missing["seed"]) == (0.2, 2)
    assert missing[["quality", "seconds"]].isna().all()
    assert runs["quality"].dtype == "float64"
    assert runs["seed"].dtype == "int64"
    assert runs.loc[0, "quality"] == 0.5


def test_the_table_of_cells_reports_test_data_at_the_rate_chosen_on_validation_data(stored_study):
    (cell,) = stored_study.cells.to_dict("records")
    assert (cell["mixer"], cell["setting"], cell["width"]) == ("attention", "finish", 8)
    assert cell["learning_rate"] == 0.1
    assert [cell[name] for name in ("mean", "std", "low", "high")] == pytest.approx([0.6, 0.1, 0.5, 0.7])
    assert (cell["num_seeds"], cell["num_diverged"], cell["validation"]) == (3, 0, pytest.approx(0.6))
    assert (cell["seconds"], cell["parameters"]) == (2.0, 10.0)


def test_a_study_without_results_has_tables_too(tmp_path):
    study = make_study(tmp_path / "traces", seeds=[0, 1])
    plan_study(study, tmp_path / "study")
    opened = Study.open(tmp_path / "study")
    assert list(opened.runs["status"]) == ["missing"] * 2
    assert opened.runs["quality"].dtype == "float64"
    assert opened.cells["num_seeds"].tolist() == [0]
    assert opened.cells["mean"].isna().all()
    assert opened.answer
    assert repr(opened).endswith("runs: 2 missing)")


def test_timings_are_all_that_is_stripped(tmp_path):
    study = make_study(tmp_path / "traces")
    result = result_of(study.runs[0].to_json())
    row = {"context": 64, "tokens_per_second": 800.5, "state_bytes": 1024}
    result["scaling"] = {"decoding": {"measured": [row], "stopped": None}}
    stripped = strip_timings(result)
    assert stripped["scaling"]["decoding"]["measured"] == [{"context": 64, "state_bytes": 1024}]
    assert set(result) - set(stripped) == {"started"}
    assert set(result["cost"]) - set(stripped["cost"]) == {"seconds"}
    assert set(result["curve"][0]) - set(stripped["curve"][0]) == {"seconds"}
    assert "seconds" in result["cost"]
    assert strip_timings({**result, "cost": None, "curve": None})["cost"] is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "recal"}, ValueError, "task 'recal' is not known; did you mean 'recall'"),
        ({"task": 3}, TypeError, "task must be a name, got 3"),
        ({"mixers": "attention"}, TypeError, "mixers must be a list of names"),
        ({"mixers": ["atention"]}, ValueError, "did you mean 'attention'"),
        ({"widths": 32}, TypeError, "widths must be a list, got 32"),
        ({"widths": []}, ValueError, "widths must name at least one value"),
        ({"widths": [0]}, ValueError, "width must be at least 1, got 0"),
        ({"seeds": "012"}, TypeError, "seeds must be a list, got '012'"),
        ({"learning_rates": [-1.0]}, ValueError, "learning_rate must be positive"),
        ({"setting": [1]}, TypeError, "setting must be a mapping, got"),
        ({"settings": {"a": 3}}, TypeError, "setting 'a' must be a mapping, got 3"),
        ({"training": {"stepz": 3}}, TypeError, "did you mean 'steps'"),
        (
            {"budget": "joules"},
            ValueError,
            "budget must be one of steps, tokens, flops, seconds, got 'joules'",
        ),
        ({"budget_amount": -3}, ValueError, "budget_amount must be positive"),
        ({"executor": "cloud"}, ValueError, "executor must be one of local, ray, print, got 'cloud'"),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"ray_address": "head:1"}, ValueError, "ray_address is for executor 'ray'"),
        ({"plugins": "mine"}, TypeError, "plugins must be a list, got 'mine'"),
        ({"plugins": ["no_such_plugin"]}, ValueError, "plugin 'no_such_plugin' cannot be found"),
        ({"notes": "one"}, TypeError, "notes must be a list, got 'one'"),
        ({"decode_contexts": 64}, TypeError, "decode_contexts must be a list, got 64"),
        ({"decode_contexts": [64, 32]}, ValueError, "decode_contexts must grow, got 32 after 64"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    arguments = {"task": "recall", "mixers": ["attention"], **TINY, **options}
    with pytest.raises(error, match=message):
        gatework.compare(**arguments, progress=False)
    assert not Path("runs").exists()


def test_opening_nothing(tmp_path):
    with pytest.raises(FileError, match="holds no study"):
        Study.open(tmp_path)


def test_the_default_directory_and_a_printed_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = gatework.compare("recall", ["attention"], executor="print", seeds=range(2), **TINY)
    assert study.directory == Path("runs/recall")
    assert study.outcome is None
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
        ["gatework", "run", "runs/recall"]
    ] * 2
    assert json.loads(Path("runs/recall/study.json").read_text())["budget_kind"] == "steps"
    assert study.spec.command.startswith("gatework compare recall --mixers '[\"attention\"]'")
