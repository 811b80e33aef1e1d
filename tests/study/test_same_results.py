"""Promise 8: the same command gives the same results, to the last bit, whoever executes it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gatework.study.results import ResultStore
from gatework.study.study import strip_timings
from tests.study.fakes import ROOT, stored, wait_until

GRID = {
    "mixers": ["attention", "base_conv", "base_conv+attention"],
    "widths": [8, 16],
    "seeds": [0, 1],
    "setting": {"input_seq_len": 16, "num_kv_pairs": 2, "vocab_size": 32, "num_train": 96, "num_test": 16},
    "training": {"steps": 12, "batch_size": 8, "evaluations": 3},
}
NUM_RUNS = 12
TIMINGS = ("seconds", "tokens_per_second", "started")


def command(directory: Path, *words: str, **axes) -> list[str]:
    """``gatework compare`` on the grid."""
    options = [f"--{name}={json.dumps(value)}" for name, value in (GRID | axes).items()]
    program = [sys.executable, "-m", "gatework", "compare", "recall"]
    return [*program, *options, *words, f"--output={directory}"]


def start(directory: Path, *words: str, **axes) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command(directory, *words, **axes), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return error


def results(directory: Path) -> dict[str, dict]:
    return {name: strip_timings(result) for name, result in ResultStore(directory).read_all().items()}


def table(directory: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO((directory / "runs.csv").read_text())))
    return [
        {name: row[name] for name in row if name not in TIMINGS and not name.startswith("decoding ")}
        for row in rows
    ]


def plan(directory: Path) -> dict:
    """The study without when it was made and what differs between the commands: directory and executor."""
    spec = json.loads((directory / "study.json").read_text())
    return {name: spec[name] for name in spec if name not in ("created", "command", "name")}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    directory = tmp_path_factory.mktemp("first") / "study"
    finish(start(directory, "--workers=2"))
    return directory


def assert_same(directory: Path, first: Path) -> None:
    assert results(directory) == results(first)
    assert table(directory) == table(first)
    assert plan(directory) == plan(first)


@pytest.mark.slow
def test_two_processes_and_one_that_was_killed(first, tmp_path):
    # The mixers in another order: the runs reach other workers after other runs.
    grid = {"mixers": GRID["mixers"][::-1], "seeds": [1, 0]}
    finish(start(tmp_path / "other", "--workers=2", **grid))
    assert results(tmp_path / "other") == results(first)
    assert sorted(map(str, table(tmp_path / "other"))) == sorted(map(str, table(first)))

    killed = start(tmp_path / "killed", "--workers=2")
    try:
        wait_until(lambda: len(stored(tmp_path / "killed")) >= 3, seconds=120)
    finally:
        killed.kill()
        killed.communicate()
    done = len(stored(tmp_path / "killed"))
    assert f"({NUM_RUNS - done} executed now)" in finish(start(tmp_path / "killed", "--workers=2"))
    assert_same(tmp_path / "killed", first)


@pytest.mark.slow
def test_ray_killed_and_resumed_equals_local_workers(first, tmp_path):
    directory = tmp_path / "study"
    killed = start(directory, "--executor=ray", "--workers=2")
    try:
        wait_until(lambda: len(stored(directory)) >= 2, seconds=300)
    finally:
        killed.kill()
        killed.communicate()
    done = len(stored(directory))
    assert 2 <= done < NUM_RUNS
    error = finish(start(directory, "--executor=ray", "--workers=2"))
    assert f"({NUM_RUNS - done} executed now)" in error
    assert all(line.startswith(("study:", "[", "page:")) for line in error.splitlines()), error
    assert_same(directory, first)


@pytest.mark.slow
def test_cells_on_a_scheduler_equal_local_workers(first, tmp_path):
    directory = tmp_path / "study"
    planned = subprocess.run(
        command(directory, "--executor=print"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = planned.stdout.splitlines()
    assert len(lines) == NUM_RUNS
    for line in lines[:2]:
        subprocess.run([sys.executable, "-m", *line.split()], cwd=ROOT, check=True, capture_output=True)
    assert "(10 executed now)" in finish(start(directory, "--workers=2"))
    assert_same(directory, first)
