"""The list of processor seconds: who is charged, what is printed, and what fails the run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < {}: pass"

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass

@pytest.fixture(scope="module")
def corpus():
    burn(1.2)

def test_setup(corpus): pass
def test_call(): burn(0.3)
def test_child(): subprocess.run([sys.executable, "-c", BURN.format(0.4)])
def test_running_child():
    burn_and_wait = BURN.format(0.4) + "\\nprint(flush=True); time.sleep(9)"
    child = subprocess.Popen([sys.executable, "-c", burn_and_wait], stdout=subprocess.PIPE)
    child.stdout.read(1)
    test_running_child.child = child
def test_the_running_child_ends(): test_running_child.child.kill(), test_running_child.child.wait()
@pytest.mark.slow
def test_slow(): burn(0.5)
def test_quick(): time.sleep(0.3)
"""


def run(folder: Path, limit: float, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests above with another limit."""
    (folder / "tests" / "unit").mkdir(parents=True)
    (folder / "tests" / "unit" / "test_it.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\n")
    (folder / "conftest.py").write_text(f"import tests.cpu_time\ntests.cpu_time.LIMIT = {limit}\n")
    root = str(Path(__file__).parents[1])
    (folder / "tests" / "__init__.py").write_text(f"__path__.append({root + '/tests'!r})\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.cpu_time", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def seconds(said: str, test: str) -> float:
    return float(re.search(rf"(\S+)  tests/unit/test_it.py::{test}\b", said)[1])


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")], ids=["one process", "xdist"])
def test_tests_are_charged_and_the_slow_ones_refused(options, tmp_path):
    done = run(tmp_path, 1.0, *options)
    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    assert "7 passed" in said
    for test, least in {"test_setup": 1.2, "test_call": 0.3, "test_child": 0.4, "test_slow": 0.5}.items():
        # Systems count in ticks of a hundredth, and a tenth is printed; a busy machine adds to each.
        assert least - 0.15 <= seconds(said, test) < least + 0.6
    assert seconds(said, "test_running_child") >= 0.25
    assert seconds(said, "test_the_running_child_ends") < 0.25
    assert seconds(said, "test_quick") < 0.25
    assert re.search(r"test_setup  \(fixture corpus 1\.\d\)", said)
    assert "test_slow [slow]" in said
    assert re.search(r"[2-5]\.\d  tests/unit \(7 tests\)", said)
    assert re.findall("TOO SLOW: (\\S+) took", said) == ["tests/unit/test_it.py::test_setup"]


def test_the_mark_and_the_limit_let_the_run_pass(tmp_path):
    done = run(tmp_path, 0.45, "-k", "slow or quick", "--cpu-list", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_slow [slow]" in done.stdout
    assert "TOO SLOW" not in done.stdout
    assert "test_quick" not in done.stdout
