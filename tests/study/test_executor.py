from __future__ import annotations

import os
import signal
import time
from contextlib import closing

import pytest

from gatework.files import FileError
from gatework.study.executor import LocalExecutor
from gatework.study.worker import Setup
from tests.study.fakes import EXECUTE, executions, is_alive, make_study, wait_until, worker_pids


def run_all(study, *, num_workers=2, num_threads=1):
    """Execute the whole grid; return what ended, by deed."""
    ended = {}
    with closing(LocalExecutor(Setup(EXECUTE, num_threads=num_threads), num_workers=num_workers)) as executor:
        for run in study.runs:
            executor.submit(run)
        while len(ended) < len(study.runs):
            for over in executor.poll(10.0):
                ended[over.run.run_id] = over
        assert executor.running() == []
    return {run.setting["deed"]: ended[run.run_id] for run in study.runs}


def test_every_way_to_end(tmp_path):
    traces = tmp_path / "traces"
    study = make_study(
        traces, deeds=("die", "raise", "leave", "finish", "exit", "unserialisable", "environment")
    )
    ended = run_all(study, num_threads=3)
    assert ended["finish"].error is None
    assert ended["finish"].result["status"] == "finished"
    assert ended["die"].error == "worker died: signal 9 (SIGKILL)"
    assert ended["leave"].error == "worker died: exit code 3"
    assert ended["raise"].error.endswith("RuntimeError: the widget is out of cheese")
    assert "in execute" in ended["raise"].error
    assert ended["exit"].error.endswith("SystemExit: this run leaves")
    assert ended["unserialisable"].error.endswith("TypeError: Object of type set is not JSON serializable")
    assert ended["environment"].result["environment"]["OMP_NUM_THREADS"] == "3"
    assert set(executions(traces).values()) == {1}
    # Two at the start, and one for each that died; an exception costs no worker.
    assert len(worker_pids(traces)) <= 4
    assert not any(is_alive(pid) for pid in worker_pids(traces))


def test_workers_stay_warm_and_share_the_queue(tmp_path):
    study = make_study(tmp_path / "traces", deeds=("finish",), seeds=list(range(8)), seconds=0.02)
    with closing(LocalExecutor(Setup(EXECUTE), num_workers=2)) as executor:
        for run in study.runs:
            executor.submit(run)
        ended = []
        while len(ended) < 8:
            assert len(executor.running()) <= 2
            ended += executor.poll(10.0)
    assert {over.run.run_id for over in ended} == {run.run_id for run in study.runs}
    assert len(worker_pids(tmp_path / "traces")) <= 2


def test_no_more_workers_than_runs(tmp_path):
    study = make_study(tmp_path / "traces")
    with closing(LocalExecutor(Setup(EXECUTE), num_workers=50)) as executor:
        executor.submit(study.runs[0])
        while not executor.poll(10.0):
            assert len(executor._workers) == 1


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    traces = tmp_path / "traces"
    study = make_study(traces, seeds=[0, 1], seconds=30.0)
    with closing(LocalExecutor(Setup(EXECUTE), num_workers=1)) as executor:
        for run in study.runs:
            executor.submit(run)
        wait_until(lambda: executor.poll(0.01) == [] and worker_pids(traces))
        (first,) = worker_pids(traces)
        os.kill(first, signal.SIGKILL)
        (over,) = executor.poll(10.0)
        assert over.error == "worker died: signal 9 (SIGKILL)"
        assert over.run == study.runs[0]
        wait_until(lambda: executor.poll(0.01) == [] and len(worker_pids(traces)) == 2)
        assert executor.running() == [study.runs[1]]
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.0  # closing does not wait for runs
    assert not any(is_alive(pid) for pid in worker_pids(traces))


def test_an_idle_worker_that_dies_costs_no_run(tmp_path):
    traces = tmp_path / "traces"
    study = make_study(traces, seeds=[0, 1])
    with closing(LocalExecutor(Setup(EXECUTE), num_workers=1)) as executor:
        executor.submit(study.runs[0])
        wait_until(lambda: executor.poll(0.1))
        (first,) = worker_pids(traces)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not is_alive(first))
        executor.submit(study.runs[1])
        ended = []
        wait_until(lambda: ended.extend(executor.poll(0.1)) or ended)
    assert ended[0].result["status"] == "finished"
    assert set(executions(traces).values()) == {1}


@pytest.mark.parametrize(
    ("execute", "message"),
    [
        ("no.such.module:execute", "ModuleNotFoundError: No module named 'no'"),
        ("tests.study.fakes:absent", "AttributeError: .*has no attribute 'absent'"),
    ],
)
def test_an_execute_that_cannot_be_loaded_stops_everything(tmp_path, execute, message):
    study = make_study(tmp_path / "traces")
    with closing(LocalExecutor(Setup(execute), num_workers=2)) as executor:
        executor.submit(study.runs[0])
        with pytest.raises(FileError, match=f"workers cannot load {execute}: {message}"):
            wait_until(lambda: executor.poll(1.0))


def test_workers_that_never_start_stop_everything(tmp_path, monkeypatch):
    (tmp_path / "stillborn.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    study = make_study(tmp_path / "traces")
    with closing(LocalExecutor(Setup("stillborn:execute"), num_workers=1)) as executor:
        executor.submit(study.runs[0])
        with pytest.raises(FileError, match=r"workers cannot start \(worker died: exit code 7\)"):
            wait_until(lambda: executor.poll(1.0))
