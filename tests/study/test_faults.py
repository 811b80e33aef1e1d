"""Promise 7: a study never loses or fakes a result, wherever it is killed and whenever the disk is full."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from gatework.study.results import ResultStore
from tests.study.fakes import (
    executions,
    is_alive,
    make_study,
    start_parent,
    wait_until,
    worker_pids,
)

NUM_RUNS = 10
NUM_FILES = NUM_RUNS + 2  # the plan, the results and the table
#: What happens, and at which calls of that function it may; each file is followed by its directory.
FAULTS = {
    "kill the parent at any time": None,
    "kill a worker": None,
    "kill:half": (1, NUM_FILES),  # half a file is written
    "kill:fsync": (1, 2 * NUM_FILES),
    "kill:replace": (1, NUM_FILES),  # the file is whole but has no name yet
    "kill after:replace": (1, NUM_FILES),
    "full:half": (1, NUM_FILES),
    "full:fsync": (1, 2 * NUM_FILES),
}
ROUNDS = 6


def session(pid: int) -> set[int]:
    """Living processes of the session that process ``pid`` leads: itself, its workers and their children."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                if os.getsid(int(entry.name)) == pid:
                    found.add(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def strike(parent: subprocess.Popen[str], fault: str, traces: Path, chance: random.Random) -> bool:
    """Kill at a random time, unless the fault is planted; return whether anything was hit."""
    if fault == "kill the parent at any time":
        if chance.random() < 0.75:
            wait_until(lambda: worker_pids(traces) or parent.poll() is not None)
        time.sleep(chance.uniform(0, 0.4))
        parent.kill()
    elif fault == "kill a worker":
        wait_until(lambda: worker_pids(traces))
        time.sleep(chance.uniform(0, 0.2))
        victim = chance.choice(sorted(worker_pids(traces)))
        if not is_alive(victim):
            return False
        os.kill(victim, signal.SIGKILL)
    return True


def scenario(folder: Path, seed: int) -> bool:
    """Disturb a study at one point that follows from ``seed``, check what is left, resume, check again."""
    chance = random.Random(seed)
    fault = list(FAULTS)[seed % len(FAULTS)]
    calls = FAULTS[fault]
    planted = f"{fault}:{chance.randint(*calls)}" if calls else ""
    traces, directory = folder / "traces", folder / "study"
    folder.mkdir()
    study = make_study(traces, seeds=list(range(NUM_RUNS)), seconds=chance.uniform(0, 0.1))
    ids = {run.run_id for run in study.runs}

    parent = start_parent(study, directory, fault=planted)
    hit = strike(parent, fault, traces, chance)
    output, _ = parent.communicate(timeout=60)
    check_end(parent.returncode, fault, output, directory)
    wait_until(lambda: not session(parent.pid), seconds=10)

    results = ResultStore(directory).read_all()  # whatever has a name is whole
    done = {run_id for run_id, result in results.items() if result["status"] == "finished"}
    before = executions(traces)
    again = start_parent(study, directory)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert f"{NUM_RUNS} finished, 0 diverged, 0 failed, 0 missing ({NUM_RUNS - len(done)} execut" in output
    repeated = {run_id: executions(traces)[run_id] - before.get(run_id, 0) for run_id in ids}
    assert repeated == {run_id: int(run_id not in done) for run_id in ids}
    assert sorted(os.listdir(directory / "results")) == sorted(f"{run_id}.json" for run_id in ids)
    assert sorted(os.listdir(directory)) == [".lock", "results", "runs.csv", "study.json"]
    assert (directory / "runs.csv").read_text().count("finished") == NUM_RUNS
    wait_until(lambda: not session(again.pid), seconds=10)
    return hit and (parent.returncode != 0 or fault == "kill a worker")


def check_end(code: int, fault: str, output: str, directory: Path) -> None:
    """Check how the disturbed study ended, and that it said so."""
    if fault == "kill a worker":
        statuses = Counter(result["status"] for result in ResultStore(directory).read_all().values())
        assert statuses["failed"] <= 1, output  # none if the worker was idle
        assert statuses["finished"] == NUM_RUNS - statuses["failed"]
        assert code == (1 if statuses["failed"] else 0)
        assert output.count("worker died: signal 9 (SIGKILL)") == statuses["failed"]
    elif fault.startswith("full"):
        assert code == 2, output
        assert "No space left on device; what was stored before is intact" in output
        assert "Traceback" not in output
    elif fault.startswith(("kill:", "kill after:")):
        assert code == -signal.SIGKILL, output
    else:
        assert code in (0, -signal.SIGKILL), output


def survive(folder: Path, seed: int) -> bool:
    try:
        return scenario(folder, seed)
    except BaseException as error:
        error.add_note(f"seed {seed}: {list(FAULTS)[seed % len(FAULTS)]}")
        raise


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 6])
def test_a_disturbed_study_is_completed(tmp_path, seed):
    survive(tmp_path / "one", seed)


@pytest.mark.slow
def test_forty_random_kill_points(tmp_path, capsys):
    hits: Counter[str] = Counter()
    for seed in range(100, 100 + ROUNDS * len(FAULTS)):
        hits[list(FAULTS)[seed % len(FAULTS)]] += survive(tmp_path / str(seed), seed)
    with capsys.disabled():
        print(f"\ncompare: {hits.total()} kill points survived: {dict(hits)}")
    assert hits.total() >= 40
    assert set(hits) == set(FAULTS)
