from __future__ import annotations

import csv
import errno
import json
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from gatework.files import FileError
from gatework.study import StudyError, StudySpec, run_study
from gatework.study.engine import order
from gatework.study.results import ResultStore, no_metrics
from tests.study.fakes import (
    EXECUTE,
    executions,
    is_alive,
    make_study,
    start_parent,
    stored,
    wait_until,
    worker_pids,
)


@pytest.fixture
def traces(tmp_path):
    return tmp_path / "traces"


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "runs" / "demo"


def go(study, directory, **options):
    return run_study(study, directory, execute=EXECUTE, num_workers=2, progress=False, **options)


def ids(study):
    return {run.run_id for run in study.runs}


def test_a_study_runs_once_and_only_once(traces, directory):
    study = make_study(traces, deeds=("finish", "diverge"), sizes=[8, 16])
    outcome = go(study, directory)
    assert (outcome.finished, outcome.diverged, outcome.failed, outcome.missing) == (2, 2, 0, 0)
    assert (outcome.executed, outcome.exit_code) == (4, 0)
    assert StudySpec.read(directory).to_json() == study.to_json()
    files = {path: path.stat().st_mtime_ns for path in (directory / "results").iterdir()}
    before = (directory / "study.json").stat().st_mtime_ns

    again = go(replace(study, created="2031-01-01"), directory)
    assert (again.finished, again.diverged, again.executed, again.exit_code) == (2, 2, 0, 0)
    assert executions(traces) == dict.fromkeys(ids(study), 1)
    assert files == {path: path.stat().st_mtime_ns for path in (directory / "results").iterdir()}
    assert before == (directory / "study.json").stat().st_mtime_ns
    assert sorted(os.listdir(directory)) == [".lock", "results", "runs.csv", "study.json"]


def test_diverged_numbers_are_null(traces, directory):
    study = make_study(traces, deeds=("diverge",))
    go(study, directory)
    result = ResultStore(directory).read(study.runs[0].run_id)
    assert result["metrics"] == no_metrics()


def test_failures_are_visible_and_tried_again(traces, directory):
    deeds = ("raise once", "die", "finish", "return nothing", "impostor")
    study = make_study(traces, deeds=deeds)
    first = go(study, directory)
    assert (first.finished, first.failed, first.missing, first.exit_code) == (1, 4, 0, 1)
    results = ResultStore(directory).read_all()
    messages = {run.setting_name: results[run.run_id]["message"] for run in study.runs}
    assert messages["die"] == "worker died: signal 9 (SIGKILL)"
    assert messages["raise once"].endswith("the widget is out of cheese")
    assert messages["return nothing"] == "the run returned an invalid result: it must be an object, got None"
    assert "run_id must be the hash of its spec" in messages["impostor"]
    with (directory / "runs.csv").open(newline="") as file:
        assert {row["setting"]: row["status"] for row in csv.DictReader(file)}["die"] == "failed"

    kept = go(study, directory, retry_failed=False)
    assert (kept.finished, kept.failed, kept.executed, kept.exit_code) == (1, 4, 0, 1)
    second = go(study, directory)
    assert (second.finished, second.failed, second.executed, second.exit_code) == (2, 3, 4, 1)
    counts = executions(traces)
    assert {run.setting_name: counts[run.run_id] for run in study.runs} == dict.fromkeys(deeds, 2) | {
        "finish": 1
    }


def test_the_cores_that_were_busy_are_counted(traces, directory, capsys):
    study = make_study(traces, deeds=("burn",), seeds=[0, 1, 2, 3], seconds=0.0)
    begun = time.monotonic()
    outcome = run_study(study, directory, execute=EXECUTE, num_workers=2)
    seconds = time.monotonic() - begun
    assert 4 * 0.5 / seconds < outcome.cores_busy < 2.1
    assert f"(4 executed now); {outcome.cores_busy:.2f} cores busy on average\n" in capsys.readouterr().err
    assert go(study, directory).cores_busy is None  # nothing was executed


def test_the_longest_first_within_a_seed(traces):
    (run,) = make_study(traces).runs

    def make(seed, **options):
        training = {"steps": options.pop("steps", 1), "batch_size": 8}
        return replace(run, seed=seed, size=options.pop("width", 8), training=training, setting=options)

    wide, long = make(5, width=16), make(5, width=8, length=64)
    many = make(5, steps=3)
    mixed = make(5, train=[{"input_seq_len": 8}, {"input_seq_len": 32}])
    odd = make(5, length="long", train="none")
    other = make(2, width=999)
    assert order([odd, wide, other, many, mixed, long]) == [long, mixed, many, wide, odd, other]


def test_seed_by_seed_and_wide_first(traces, directory):
    study = make_study(traces, sizes=[8, 32, 16], seeds=[7, 3], seconds=0.02)
    run_study(study, directory, execute=EXECUTE, num_workers=1, progress=False)
    begun = sorted(traces.iterdir(), key=lambda trace: trace.stat().st_mtime_ns)
    runs = {run.run_id: (run.seed, run.size) for run in study.runs}
    order = [runs[trace.name.split(".")[0]] for trace in begun]
    assert order == [(7, 32), (7, 16), (7, 8), (3, 32), (3, 16), (3, 8)]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_killed_parent_leaves_no_orphan_and_exactly_the_missing_runs_are_repeated(traces, directory, after):
    study = make_study(traces, seeds=list(range(24)), seconds=0.1)
    parent = start_parent(study, directory)
    try:
        wait_until(lambda: worker_pids(traces) and len(stored(directory)) >= after)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in worker_pids(traces)), seconds=5)
    done, before = stored(directory), executions(traces)
    assert after <= len(done) < 24
    outcome = go(study, directory)
    assert (outcome.finished, outcome.executed, outcome.exit_code) == (24, 24 - len(done), 0)
    repeated = {run_id: count - before.get(run_id, 0) for run_id, count in executions(traces).items()}
    assert repeated == {run_id: int(run_id not in done) for run_id in ids(study)}


def test_workers_in_a_long_run_follow_a_killed_parent(traces, directory):
    parent = start_parent(make_study(traces, seeds=[0, 1], seconds=60.0), directory)
    try:
        wait_until(lambda: len(worker_pids(traces)) == 2)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in worker_pids(traces)), seconds=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_stopping_keeps_what_ended_and_says_how_to_resume(traces, directory, number, send):
    study = make_study(traces, seeds=list(range(20)), seconds=0.1)
    parent = start_parent(study, directory)
    wait_until(lambda: len(stored(directory)) >= 2)
    send(parent.pid, number)  # to the study alone, or to its workers too as terminals do
    output, _ = parent.communicate(timeout=10)
    assert parent.returncode == 128 + number
    assert f"stopped by {number.name}" in output
    assert f"Resume with: {study.command}" in output
    assert "Traceback" not in output
    assert not any(is_alive(pid) for pid in worker_pids(traces))
    done = stored(directory)
    statuses = {result["status"] for result in ResultStore(directory).read_all().values()}
    assert 2 <= len(done) < 20
    assert statuses == {"finished"}
    assert (directory / "runs.csv").read_text().count("missing") == 20 - len(done)
    outcome = go(study, directory)
    assert (outcome.finished, outcome.executed) == (20, 20 - len(done))


def test_ctrl_c_disturbs_no_worker(traces, directory):
    study = make_study(traces, seeds=[0, 1, 2], seconds=0.4)
    parent = start_parent(study, directory)
    wait_until(lambda: worker_pids(traces))
    for pid in worker_pids(traces):
        os.kill(pid, signal.SIGINT)
    output, _ = parent.communicate(timeout=20)
    assert parent.returncode == 0, output
    assert "3 finished, 0 diverged, 0 failed, 0 missing (3 executed now)" in output


def test_signal_handlers_are_restored(traces, directory):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    go(make_study(traces), directory)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_full_disk_stops_the_study_and_loses_nothing(traces, directory, monkeypatch):
    study = make_study(traces, seeds=list(range(6)))
    real = os.fsync

    def nearly_full(descriptor):
        if len(stored(directory)) >= 3 and stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, 10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", nearly_full)
    with pytest.raises(FileError, match=r"cannot write .*: No space left on device; .* resume$") as caught:
        go(study, directory)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    done = stored(directory)
    assert len(done) == 3
    assert len(list((directory / "results").iterdir())) == 3  # no torn file, no temporary one
    assert not any(is_alive(pid) for pid in worker_pids(traces))
    outcome = go(study, directory)
    assert (outcome.finished, outcome.executed, outcome.exit_code) == (6, 3, 0)


@pytest.mark.parametrize(
    "content", [b"", b'{"format": "gatework.result/1"', b"{}", b"[1]", b'{"format": "x"}']
)
def test_a_broken_result_stops_the_study_before_anything_runs(traces, directory, content):
    study = make_study(traces, seeds=[0, 1])
    go(study, directory)
    path = directory / "results" / f"{study.runs[0].run_id}.json"
    path.write_bytes(content)
    larger = make_study(traces, seeds=[0, 1, 2])
    with pytest.raises(FileError, match=rf"{path} .*move it away to have that run repeated"):
        go(larger, directory)
    assert path.read_bytes() == content
    assert StudySpec.read(directory).to_json() == study.to_json()
    assert set(executions(traces).values()) == {1}
    path.unlink()
    assert go(larger, directory).executed == 2


def test_another_grid_of_the_same_task_keeps_and_counts_the_rest(traces, directory):
    go(make_study(traces, seeds=[0, 1], sizes=[8]), directory)
    created = StudySpec.read(directory).created
    other = replace(make_study(traces, seeds=[1, 2], sizes=[8, 16]), created="2031-01-01")
    outcome = go(other, directory)
    assert (outcome.finished, outcome.executed, outcome.unrelated) == (4, 3, 1)
    assert "1 stored results belong to no run of this grid: kept, not shown" in outcome.summary
    assert len(stored(directory)) == 5
    now = StudySpec.read(directory)
    assert {run.run_id for run in now.runs} == ids(other)
    assert now.created == created


def test_another_task_is_refused(traces, directory):
    study = make_study(traces)
    go(study, directory)
    text = replace(study, task="text", runs=[replace(run, task="text") for run in study.runs])
    with pytest.raises(
        StudyError, match="holds a study of task 'recall', not 'text'; choose another directory"
    ):
        go(text, directory)
    assert StudySpec.read(directory).task == "recall"


def test_a_directory_of_something_else_is_left_alone(traces, directory):
    directory.mkdir(parents=True)
    (directory / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match=r"holds no study\.json but 'thesis\.tex'"):
        go(make_study(traces), directory)
    assert os.listdir(directory) == ["thesis.tex"]
    with pytest.raises(StudyError, match=r"cannot use .*thesis\.tex as study directory"):
        go(make_study(traces), directory / "thesis.tex")


def test_a_study_killed_before_its_first_file_starts_anew(traces, directory):
    directory.mkdir(parents=True)
    (directory / ".lock").touch()
    (directory / f".study.json.{platform.node()}.{2**22 + 1}.tmp").write_text("{")
    assert go(make_study(traces), directory).exit_code == 0
    assert sorted(os.listdir(directory)) == [".lock", "results", "runs.csv", "study.json"]


def test_a_broken_study_file_is_refused(traces, directory):
    go(make_study(traces), directory)
    (directory / "study.json").write_text('{"format":')
    with pytest.raises(FileError, match=r"study\.json is not valid JSON.*restore it from a copy"):
        go(make_study(traces), directory)


def test_two_processes_never_run_one_study(traces, directory):
    study = make_study(traces, seconds=60.0)
    parent = start_parent(study, directory)
    try:
        wait_until(lambda: worker_pids(traces))
        with pytest.raises(FileError, match=rf"process {parent.pid} is already working in"):
            go(study, directory)
    finally:
        parent.kill()
        parent.communicate()


@pytest.mark.bad_input
def test_number_of_workers_is_checked(traces, directory):
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        run_study(make_study(traces), directory, num_workers=0)
    assert not directory.exists()


def test_the_threads_of_the_cores_are_shared_among_workers(traces, directory, monkeypatch):
    monkeypatch.setattr("gatework.study.executor.available_cores", lambda: 6)
    study = make_study(traces, deeds=("environment",))
    go(study, directory)
    assert ResultStore(directory).read(study.runs[0].run_id)["environment"]["OMP_NUM_THREADS"] == "3"


def test_progress_goes_to_standard_error(traces, directory, capsys):
    study = make_study(traces, deeds=("finish", "raise"))
    for expected in (
        "fake: 2 runs, 0 stored, 2 to do\n",
        "fake: 2 runs, 1 stored, 1 to do, 1 of them failed before\n",
    ):
        run_study(study, directory, execute=EXECUTE, num_workers=2)
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(expected)
        assert "failed attention · raise · width 8 · lr 0.01 · seed 0: RuntimeError: the widget" in output.err
        assert "fake: 1 finished, 0 diverged, 1 failed, 0 missing" in output.err


def test_nothing_heavy_is_imported():
    program = (
        "import gatework.study.engine, gatework.study.options, sys\n"
        "print([name for name in ('torch', 'lightning', 'numpy', 'plotly') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"


def test_study_file_follows_its_format(traces, directory):
    go(make_study(traces), directory)
    content = json.loads((directory / "study.json").read_text())
    assert content["format"] == "gatework.study/4"
    assert set(content) == {
        "format",
        "name",
        "task",
        "command",
        "created",
        "quality",
        "declaration",
        "title",
        "notes",
        "budget",
        "budget_kind",
        "plugins",
        "runs",
    }
    assert content["quality"] == {
        "name": "accuracy",
        "unit": "",
        "better": "higher",
        "chance": 0.0,
        "range": [0.0, 1.0],
    }
