"""Runs as Ray tasks: the executor's own logic against a Ray of a few lines, then a real one."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from contextlib import closing

import pytest

from gatework.study import StudyError, StudySpec
from gatework.study.executor import make_executor, threads_per_worker
from gatework.study.ray_executor import RayExecutor, perform
from gatework.study.results import ResultStore
from gatework.study.worker import Setup
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


class FakeRay(types.ModuleType):
    """As much of Ray as the executor touches: tasks are over when the test says how they ended."""

    def __init__(self, cpus=2):
        super().__init__("ray")
        self.cpus, self.calls, self.over, self.tasks = cpus, [], {}, []
        self.initialized = False
        self._private = types.SimpleNamespace(worker=types.SimpleNamespace())
        self.exceptions = types.SimpleNamespace(
            RayError=type("RayError", (Exception,), {}),
        )
        self.exceptions.RayTaskError = type("RayTaskError", (self.exceptions.RayError,), {})
        self.exceptions.NodeDiedError = type("NodeDiedError", (self.exceptions.RayError,), {})

    def is_initialized(self):
        return self.initialized

    def init(self, **options):
        self.calls.append(("init", options))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does

    def shutdown(self):
        self.calls.append(("shutdown", {}))

    def cluster_resources(self):
        return {"CPU": float(self.cpus), "memory": 1.0}

    def remote(self, **options):
        self.calls.append(("remote", options))

        def bind(function):
            def submit(setup, text):
                self.tasks.append(json.loads(text)["seed"])
                return self.tasks[-1]

            return types.SimpleNamespace(remote=submit)

        return bind

    def wait(self, references, *, num_returns, timeout):
        ready = [reference for reference in references if reference in self.over][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        end = self.over[reference]
        if isinstance(end, Exception):
            raise end
        return json.dumps(end)

    def cancel(self, reference, *, force):
        self.calls.append(("cancel", {"task": reference, "force": force}))


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return fake


@pytest.fixture
def runs(tmp_path):
    return make_study(tmp_path / "traces", seeds=list(range(6))).runs


def test_tasks_are_given_out_as_others_end(ray, runs):
    with closing(RayExecutor(Setup(EXECUTE), num_workers=2)) as executor:
        for run in runs:
            executor.submit(run)
        assert executor.poll(0.0) == []
        assert ray.tasks == [0, 1]
        assert [run.seed for run in executor.running()] == [0, 1]
        ray.over[1] = {"result": {"quality": 1}, "cpu_seconds": 2.0}
        (ended,) = executor.poll(0.0)
        assert (ended.run.seed, ended.result, ended.error) == (1, {"quality": 1}, None)
        assert ray.tasks == [0, 1, 2]  # at once, before anything is stored
        ray.over |= {0: {"error": "no cheese", "cpu_seconds": 1.0}, 2: ray.exceptions.NodeDiedError("a. b")}
        assert [(over.run.seed, over.error) for over in executor.poll(0.0)] == [
            (0, "no cheese"),
            (2, "worker died: NodeDiedError: a"),
        ]
        assert ray.tasks == [0, 1, 2, 3, 4]
        assert executor.cores_busy() > 0
    cancelled = [call for name, call in ray.calls if name == "cancel"]
    assert cancelled == [{"task": 3, "force": True}, {"task": 4, "force": True}]
    assert ray.calls[-1][0] == "shutdown"


def test_a_ray_of_its_own(ray):
    before = signal.getsignal(signal.SIGTERM)
    RayExecutor(Setup(EXECUTE), num_workers=3).close()
    options = ray.calls[0][1]
    assert (options["address"], options["num_cpus"]) == ("local", 3)
    assert not options["include_dashboard"]
    assert not options["log_to_driver"]
    assert ("remote", {"num_cpus": 1, "max_retries": 0, "retry_exceptions": False}) in ray.calls
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("given", ["head:6379", None])
def test_a_cluster_by_address_or_environment(ray, runs, monkeypatch, given):
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    ray.cpus = 5
    with closing(RayExecutor(Setup(EXECUTE), address=given)) as executor:
        for run in runs:
            executor.submit(run)
        executor.poll(0.0)
        assert len(executor.running()) == 5  # as many as the cluster has processors
    assert ray.calls[0][1]["address"] == (given or "other:6379")
    assert "num_cpus" not in ray.calls[0][1]


def test_a_ray_that_was_there_stays(ray):
    ray.initialized = True
    RayExecutor(Setup(EXECUTE)).close()
    assert {name for name, _ in ray.calls} == {"remote"}


def test_what_stops_everything(ray, runs, monkeypatch):
    for end, message in (
        ({"broken": "workers cannot start: no plugin"}, "workers cannot start: no plugin"),
        (
            ray.exceptions.RayTaskError("a\nModuleNotFoundError: gatework"),
            "execute runs: ModuleNotFound.*every",
        ),
    ):
        ray.over = {0: end}
        with closing(RayExecutor(Setup(EXECUTE), num_workers=1)) as executor:
            executor.submit(runs[0])
            with pytest.raises(StudyError, match=message):
                executor.poll(0.0)

    def unreachable(**options):
        raise ConnectionError("nobody\nis there")

    monkeypatch.setattr(ray, "init", unreachable)
    with pytest.raises(StudyError, match="cannot reach Ray at 'head:1': is there"):
        RayExecutor(Setup(EXECUTE), address="head:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r'needs Ray, .* pip install "gatework\[ray\]"'):
        make_executor("ray", Setup(EXECUTE))


@pytest.mark.bad_input
def test_names_and_numbers_are_checked():
    with pytest.raises(ValueError, match="executor must be one of local, ray, got 'cloud'"):
        make_executor("cloud", Setup(EXECUTE))
    with pytest.raises(
        ValueError, match="ray_address is for executor 'ray', got 'head:1' with executor 'local'"
    ):
        make_executor("local", Setup(EXECUTE), ray_address="head:1")
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        make_executor("ray", Setup(EXECUTE), num_workers=0)
    assert threads_per_worker("ray", 1) == 1


def test_a_task_answers_in_json(tmp_path):
    study = make_study(tmp_path / "traces", deeds=("finish", "raise"), seconds=0.0)
    good, bad = (json.loads(perform(Setup(EXECUTE), json.dumps(run.to_json()))) for run in study.runs)
    assert good["result"]["status"] == "finished"
    assert bad["error"].endswith("the widget is out of cheese")
    assert good["cpu_seconds"] >= 0
    broken = json.loads(perform(Setup(EXECUTE, task="recall", candidates={"mine": [{"name": "mine"}]}), "{}"))
    assert "put what registers it into a module, and name that as a plugin" in broken["broken"]
    broken = json.loads(perform(Setup("no.such:thing"), "{}"))
    assert broken["broken"].endswith("ModuleNotFoundError: No module named 'no'")


@pytest.mark.slow
def test_every_way_to_end_on_a_real_ray(tmp_path, capfd):
    from gatework.study import run_study

    study = make_study(tmp_path / "traces", deeds=("finish", "die", "raise", "leave", "diverge"))
    outcome = run_study(study, tmp_path / "demo", execute=EXECUTE, executor="ray", num_workers=2)
    assert (outcome.finished, outcome.diverged, outcome.failed, outcome.exit_code) == (1, 1, 3, 1)
    results = ResultStore(tmp_path / "demo").read_all()
    messages = {run.setting_name: results[run.run_id]["message"] for run in study.runs}
    assert messages["die"].startswith("worker died: WorkerCrashedError: ")
    assert messages["raise"].endswith("the widget is out of cheese")
    assert set(executions(tmp_path / "traces").values()) == {1}  # Ray tries nothing again
    output = capfd.readouterr()
    assert output.out == ""
    assert all(line.startswith(("fake:", "[")) for line in output.err.splitlines()), output.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_parent_leaves_no_run_behind_and_is_resumed(tmp_path, number):
    traces, directory = tmp_path / "traces", tmp_path / "demo"
    study = make_study(traces, seeds=list(range(10)), seconds=0.5)
    parent = start_parent(study, directory, executor="ray")
    try:
        wait_until(lambda: len(stored(directory)) >= 2, seconds=90)
        # SIGINT reaches the whole group, as from a terminal: Ray's processes and the runs are not disturbed.
        (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
        output, _ = parent.communicate(timeout=60)
    finally:
        parent.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in worker_pids(traces)), seconds=20)
    done, before = stored(directory), executions(traces)
    assert 2 <= len(done) < 10
    assert {result["status"] for result in ResultStore(directory).read_all().values()} == {"finished"}
    if number != signal.SIGKILL:
        assert parent.returncode == 128 + number
        assert f"Resume with: {study.command}" in output
        assert "Traceback" not in output
    again = start_parent(study, directory, executor="ray")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    repeated = {run_id: count - before.get(run_id, 0) for run_id, count in executions(traces).items()}
    assert repeated == {run.run_id: int(run.run_id not in done) for run in StudySpec.read(directory).runs}
