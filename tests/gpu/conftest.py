"""Tests of a GPU: the device they run on, why they are skipped, and what passed, engine by engine."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[1] / "benchmarks"))  # the cases of the engines, which a benchmark shares


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cuda", help="where tests/gpu runs; cpu is a dry run of the same tests"
    )


def device_of(config: pytest.Config) -> str:
    """The kind of device that is tested; the option is unknown where this file was not loaded first."""
    return str(config.getoption("--device", default="cuda"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no GPU."""
    if device_of(config) != "cuda" or torch.cuda.is_available():
        return
    reason = "needs a CUDA GPU, and torch.cuda.is_available() says there is none (--device cpu is a dry run)"
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device(pytestconfig: pytest.Config) -> str:
    return device_of(pytestconfig)


@pytest.fixture(autouse=True)
def _settings():
    """Products in full precision; not the other tests' settings, which not every kernel supports."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.compiler.reset()


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Say for every engine how many of its cases passed: what a line of ``TRIED`` is based on."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in getattr(report, "user_properties", []):
                if name == "engine":
                    counts[tuple(value)][outcome] += 1
    if not counts:
        return
    device = device_of(config)
    what = f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}" if device == "cuda" else "a dry run"
    terminalreporter.section(f"engines on {device} ({what})")
    for (operator, engine), count in sorted(counts.items()):
        failed = count["failed"] + count["error"]
        line = f"{operator:24} {engine:14} {count['passed']:4} passed {failed:4} failed"
        terminalreporter.write_line(f"{line} {count['skipped']:4} refused or not installed")
