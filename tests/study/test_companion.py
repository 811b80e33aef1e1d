"""``gatework compare text`` with a recall study beside it: what it inherits, where it is, what goes wrong."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

import gatework
from gatework.cli import main
from gatework.files import FileError
from gatework.study.companion import companion_options, read_companion
from gatework.study.options import CompareOptions
from gatework.study.report import write_report
from gatework.study.single_run import run_one
from gatework.study.spec import StudySpec
from gatework.study.study import Study
from gatework.tasks.text_declaration import TEXT as TEXT_TASK
from tests.study.synthetic_gaps import companion_study, gap_study
from tests.study.synthetic_studies import text_study

TEXT = {
    "mixers": {"attention": ["attention"], "conv": {"layers": ["base_conv"], "learning_rates": [0.01]}},
    "widths": [8],
    "seeds": [0],
    "setting": {"max_bytes": 60_000, "length": 16, "num_test": 8},
    "training": {"steps": 3, "batch_size": 4, "evaluations": 1},
    "decode_contexts": [],
}
RECALL = {
    "setting": {"input_seq_len": 16, "num_kv_pairs": 2, "vocab_size": 32, "num_train": 64, "num_test": 16},
    "training": {"steps": 4, "batch_size": 8, "evaluations": 2},
    "learning_rates": [0.001, 0.003],
}


def words(recall=RECALL, **options):
    """The command line of such a study."""
    values = TEXT | {"recall": recall} | options
    return ["compare", "text", *(f"--{name}={json.dumps(value)}" for name, value in values.items())]


@pytest.fixture(scope="module")
def command(tmp_path_factory, warm_workers):
    """A study made by the command line: all but one run in this process, which saves starting workers."""
    folder = tmp_path_factory.mktemp("companion") / "text"
    gatework.compare("text", **TEXT, recall=RECALL, output=folder, executor="print", progress=False)
    planned = [(folder, run) for run in StudySpec.read(folder).runs]
    planned += [(folder / "recall", run) for run in StudySpec.read(folder / "recall").runs]
    for directory, run in planned[:-1]:
        run_one(directory, run.run_id)
    assert main([*words(), f"--output={folder}", "--workers=1"]) == 0
    return folder


def test_both_studies_are_made_and_one_page_has_both(command):
    study = Study.open(command)
    assert (study.spec.task, study.companion.spec.task) == ("text", "recall")
    assert study.companion.directory == command / "recall"
    assert set(study.companion.runs["status"]) == {"finished"}
    assert (command / "recall" / "report.html").exists()
    page = (command / "report.html").read_text()
    assert "Does recall predict the text gap?" in page
    assert "With 2 mixers measured in both studies" in page
    assert "With 2 mixers measured in both studies" in study.answer


def test_the_models_are_the_same_and_the_training_its_own(command):
    text, recall = StudySpec.read(command), StudySpec.read(command / "recall")
    shared = [
        {(run.candidate, str(run.definition), run.size, run.seed) for run in one.runs}
        for one in (text, recall)
    ]
    assert shared[0] == shared[1]
    assert {run.learning_rate for run in text.runs if run.candidate == "conv"} == {0.01}
    assert {run.learning_rate for run in recall.runs} == {0.001, 0.003}  # those of one mixer stay behind
    assert {run.training["steps"] for run in recall.runs} == {4}


def test_the_command_on_either_page_continues_both(command, capsys):
    for directory in (command, command / "recall"):
        arguments = shlex.split(StudySpec.read(directory).command)[1:]
        assert main(arguments) == 0
        told = capsys.readouterr().err
        assert "text: 2 runs, 2 stored, 0 to do" in told
        assert "recall: 4 runs, 4 stored, 0 to do" in told


def test_the_call_writes_the_same_command(command, capsys):
    study = gatework.compare(
        "text", **TEXT, recall=RECALL, output=command, executor="print", progress=False, notes=["changed"]
    )
    assert capsys.readouterr().out == ""  # nothing is missing
    arguments = shlex.split(study.spec.command)[1:]
    assert json.loads(arguments[arguments.index("--recall") + 1]) == RECALL
    assert study.companion.spec.command == study.spec.command


def test_a_scheduler_gets_the_commands_of_both(tmp_path, capsys):
    output = tmp_path / "text"
    assert main([*words(), f"--output={output}", "--executor=print"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [
        *[["gatework", "run", str(output)]] * 2,
        *[["gatework", "run", str(output / "recall")]] * 4,
    ]
    assert main(lines[-1][1:]) == 0
    assert len(list((output / "recall" / "results").iterdir())) == 1


def test_measured_speeds_may_be_kept_before_the_study_is(tmp_path, capsys):
    recall = RECALL | {"budget": "seconds", "budget_amount": 5.0, "learning_rates": [0.001]}
    output = tmp_path / "text"
    assert main([*words(recall), f"--output={output}", "--executor=print"]) == 0
    assert (output / "recall" / "calibration.json").exists()
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("recall", "message"),
    [
        ({"widths": 8}, "recall.widths must be a list, got 8"),
        ({"widths": []}, "recall.widths must name at least one value"),
        ({"budget": "joules"}, "recall.budget must be one of"),
        ({"width": [8]}, "recall has no option 'width', did you mean 'widths'?"),
        ({"workers": 2}, "recall has no option 'workers'"),
        ({"setting": {"pairs": 3}}, "recall: attention, pairs=3, width 8:"),
        ({"setting": [3]}, "recall.setting must be a mapping"),
        (
            {"mixers": ["attention", "convv"]},
            "recall.mixers must have labels of the study on text, got 'convv'",
        ),
        ({"training": {"stepz": 3}}, "training has no option 'stepz'"),
        ({"model": {"widht": 3}}, "model has no option 'widht'"),
    ],
)
def test_what_is_wrong_with_it_is_named(tmp_path, capsys, recall, message):
    assert main([*words(recall), f"--output={tmp_path / 's'}"]) == 2
    told = capsys.readouterr().err
    assert message.replace(", did you mean 'widths'?", "") in told
    assert "recall" in told.splitlines()[-1]
    assert not (tmp_path / "s" / "study.json").exists()


@pytest.mark.bad_input
def test_it_accompanies_text_alone(tmp_path):
    with pytest.raises(TypeError, match="'recall' has no option 'recall', which is of task 'text'"):
        gatework.compare("recall", recall={}, output=tmp_path / "s")
    with pytest.raises(TypeError, match="recall must be a mapping, got 'all'"):
        gatework.compare("text", recall="all", output=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_what_is_inherited_and_what_is_not():
    text = CompareOptions.of("text", "all", widths=[8], decode_contexts=[])
    assert companion_options({"mixers": ["anything"]}, text)["candidates"] == ["anything"]  # known later
    inherited = companion_options({"widths": [16]}, replace(text, candidates=["attention"]))
    assert (inherited["sizes"], inherited["measure"]) == ([16], {"decode_contexts": []})


def test_a_folder_of_another_task_is_refused(tmp_path):
    directory = gap_study(tmp_path / "text")
    assert read_companion(directory, TEXT_TASK.companion) is None
    companion_study(directory)
    assert read_companion(directory, TEXT_TASK.companion).study.task == "recall"
    other = gap_study(tmp_path / "other")
    text_study(other / "recall")
    with pytest.raises(FileError, match="must hold a recall study to accompany"):
        write_report(other)
    with pytest.raises(FileError, match="must hold a recall study to accompany"):
        gatework.compare("text", **TEXT, recall=RECALL, output=other, executor="print")


def test_a_broken_companion_is_named(tmp_path):
    directory = gap_study(tmp_path / "text", mixers=("attention", "hyena"))
    broken = next((companion_study(directory) / "results").iterdir())
    broken.write_text("{")
    with pytest.raises(FileError, match=broken.name):
        write_report(directory)
