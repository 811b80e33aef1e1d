"""The tests of a GPU can be run without one: some of them on the CPU, and all are skipped for a reason."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from gatework.ops.engines import TRIED
from tests.warm_python import run_python

ROOT = Path(__file__).parents[1]


def run_suite(*options: str) -> subprocess.CompletedProcess[str]:
    """Run tests of ``tests/gpu`` as on a machine that has no more than they need."""
    command = ["-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *options]
    return run_python(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_dry_run_on_the_cpu():
    chosen = "attention-causal-dense or wkv-37 or (mamba and float64) or head_s_loss or reach_every"
    done = run_suite("tests/gpu", "--device", "cpu", "-k", f"({chosen}) and not numba")
    assert done.returncode == 0, done.stdout
    assert "engines on cpu (a dry run)" in done.stdout
    assert re.search(r"^attention +dense +4 passed +0 failed +0 refused", done.stdout, re.MULTILINE)
    assert re.search(r"^wkv +chunked-torch +3 passed +0 failed", done.stdout, re.MULTILINE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_they_are_skipped_and_say_why():
    done = run_suite("tests/gpu/test_mixers.py")
    assert done.returncode == 0, done.stdout
    assert " skipped" in done.stdout
    assert "passed" not in done.stdout
    assert "needs a CUDA GPU" in done.stdout


def test_there_are_cases_for_every_operator(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import _engine_cases

    cases = _engine_cases.CASES
    assert {case.operator for case in cases} >= TRIED.keys()
    assert {case.operator for case in cases if case.is_core} >= TRIED.keys()
