"""One run at a time, as a scheduler executes a study."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gatework.cli import main
from gatework.study import StudyError, run_study
from gatework.study.engine import plan_study
from gatework.study.results import ResultStore
from gatework.study.single_run import run_one
from tests.study.fakes import EXECUTE, ROOT, executions, make_study, stored, wait_until


@pytest.fixture
def traces(tmp_path):
    return tmp_path / "traces"


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "runs" / "demo"


def cell(directory, run):
    return run_one(directory, run.run_id, execute=EXECUTE)


def test_planned_runs_executed_one_by_one_are_the_study(traces, directory):
    study = make_study(traces, deeds=("finish", "diverge", "raise once"), seconds=0.0)
    planned = plan_study(study, directory)
    assert {run.run_id for run in planned} == {run.run_id for run in study.runs}
    assert executions(traces) == {}
    for run in planned:
        result, executed = cell(directory, run)
        assert executed
        assert result == ResultStore(directory).read(run.run_id)
    statuses = {run.setting_name: ResultStore(directory).read(run.run_id)["status"] for run in study.runs}
    assert statuses == {"finish": "finished", "diverge": "diverged", "raise once": "failed"}

    assert [run.setting_name for run in plan_study(study, directory)] == ["raise once"]
    for run in study.runs:
        _, executed = cell(directory, run)
        assert executed == (run.setting_name == "raise once")
    outcome = run_study(study, directory, execute=EXECUTE, num_workers=1, progress=False)
    assert (outcome.finished, outcome.diverged, outcome.executed) == (2, 1, 0)
    counts = executions(traces)
    assert {run.setting_name: counts[run.run_id] for run in study.runs} == {
        "finish": 1,
        "diverge": 1,
        "raise once": 2,
    }


def test_many_at_once(traces, directory):
    study = make_study(traces, seeds=list(range(4)), seconds=0.2)
    plan_study(study, directory)
    program = (
        "import sys; from pathlib import Path; from gatework.study.single_run import run_one\n"
        f"run_one(Path(sys.argv[1]), sys.argv[2], execute={EXECUTE!r})"
    )
    ids = [run.run_id for run in study.runs] * 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(directory), run_id],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for run_id in ids
    ]
    assert [process.wait(timeout=60) for process in processes] == [0] * 8
    assert stored(directory) == set(ids)
    assert {result["status"] for result in ResultStore(directory).read_all().values()} == {"finished"}
    assert sorted(os.listdir(directory / "results")) == sorted(f"{run_id}.json" for run_id in set(ids))


def test_a_failure_does_not_hide_what_somebody_else_finished_meanwhile(traces, directory, monkeypatch):
    study = make_study(traces, deeds=("finish",))
    plan_study(study, directory)
    (run,) = study.runs

    def lose(function, spec):
        cell(directory, run)
        return {"error": "no cheese"}

    real = sys.modules["gatework.study.single_run"].answer
    calls = iter([lose, real])
    monkeypatch.setattr("gatework.study.single_run.answer", lambda *arguments: next(calls)(*arguments))
    result, executed = cell(directory, run)
    assert (result["status"], executed) == ("finished", False)


def test_a_study_that_cleans_up_meanwhile_costs_no_result(traces, directory, monkeypatch):
    study = make_study(traces)
    plan_study(study, directory)
    real, cleaned = os.replace, []

    def replace_after_cleaning(source, target):
        if not cleaned:
            cleaned.append(source)
            ResultStore(directory).prepare()
            Path(source).unlink(missing_ok=True)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_after_cleaning)
    assert cell(directory, study.runs[0])[0]["status"] == "finished"
    assert stored(directory) == {study.runs[0].run_id}
    assert cleaned


def test_mistakes(traces, directory):
    study = make_study(traces)
    with pytest.raises(StudyError, match="holds no study"):
        cell(directory, study.runs[0])
    plan_study(study, directory)
    with pytest.raises(StudyError, match=r"'0000' is no run of the study in .*, which has 1, such as"):
        run_one(directory, "0000", execute=EXECUTE)
    plan = replace(study, plugins=("no_such_plugin",))
    (directory / "study.json").write_text(json.dumps(plan.to_json()))
    with pytest.raises(StudyError, match=r"needs the plugin 'no_such_plugin', .* --plugin no_such_plugin"):
        cell(directory, study.runs[0])
    with pytest.raises(StudyError, match="needs the plugin 'no_such_plugin'"):
        run_study(plan, directory, execute=EXECUTE)
    assert executions(traces) == {}


def test_the_command_and_its_exit_codes(traces, directory, monkeypatch, capsys):
    monkeypatch.setattr("gatework.study.single_run.run_one", partial(run_one, execute=EXECUTE))
    study = make_study(traces, deeds=("finish", "diverge", "raise"), seconds=0.0)
    plan_study(study, directory)
    said = {}
    for run in study.runs:
        code = main(["run", str(directory), run.run_id])
        said[run.setting_name] = code, capsys.readouterr()
    assert {deed: code for deed, (code, _) in said.items()} == {"finish": 0, "diverge": 0, "raise": 1}
    assert all(output.out == "" for _, output in said.values())
    assert said["raise"][1].err.endswith("the widget is out of cheese\n")
    assert main(["run", str(directory), study.runs[0].run_id]) == 0
    assert "nothing to do, already finished" in capsys.readouterr().err
    assert main(["run", str(directory), "0000"]) == 2
    assert main(["run", str(directory), "0000", "--threads=0"]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stores_nothing(traces, directory, number):
    study = make_study(traces, seconds=60.0)
    plan_study(study, directory)
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gatework.study import single_run; from gatework.cli import main\n"
        f"single_run.run_one.__kwdefaults__['execute'] = {EXECUTE!r}\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", str(directory), study.runs[0].run_id],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: executions(traces))
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert "Traceback" not in error
    assert stored(directory) == set()


def test_printed_commands_are_for_a_shell(traces, tmp_path, capsys, monkeypatch):
    from gatework.study import compare

    monkeypatch.setattr(compare, "check_runs", lambda runs: None)
    monkeypatch.chdir(tmp_path)
    options = ["--seeds=[3,4]", "--widths=[8,16]", "--mixers=[attention]", "--executor=print"]
    assert main(["compare", "recall", *options, "--output=my runs/one"]) == 0
    output = capsys.readouterr()
    spec = compare.StudySpec.read(tmp_path / "my runs" / "one")
    in_order = sorted(spec.runs, key=lambda run: (run.seed, -run.size))
    assert [shlex.split(line) for line in output.out.splitlines()] == [
        ["gatework", "run", "my runs/one", run.run_id] for run in in_order
    ]
    assert "4 runs, 4 to do" in output.err
    assert not (tmp_path / "my runs" / "one" / "report.html").exists()
    assert main(["compare", "recall", *options, "--workers=2"]) == 2
    assert "executor 'print' executes nothing" in capsys.readouterr().err
