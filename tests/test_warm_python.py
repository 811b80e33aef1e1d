"""A program in a warm process is what it would be in a fresh one: arguments, streams, folder, status."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.warm_python import run_python

SAYS = """
import atexit, json, os, sys
atexit.register(print, "the end")
print(json.dumps([sys.argv, os.getcwd(), sys.path[0], dict(os.environ), __name__]))
print("trouble", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "file"])
def test_it_is_told_what_a_program_is_told(kind, tmp_path):
    file = tmp_path / "told.py"
    file.write_text(SAYS)
    program = {"-c": ["-c", SAYS], "-m": ["-m", "told"], "file": [str(file)]}[kind]
    done = run_python([*program, "--flag", "a b"], cwd=tmp_path, env={"COLOUR": "red"})
    said, end = done.stdout.splitlines()
    argv, folder, first, environment, name = json.loads(said)
    assert argv == [{"-c": "-c", "-m": str(file), "file": str(file)}[kind], "--flag", "a b"]
    assert (folder, first) == (str(tmp_path), "" if kind == "-c" else str(tmp_path))
    assert environment == {"COLOUR": "red"}
    assert name == "__main__"
    assert end == "the end"
    assert done.stderr == "trouble\n"
    assert done.returncode == 0


def test_nothing_of_gatework_is_there_and_nothing_stays():
    program = "import os, sys; print([m for m in sys.modules if m.startswith('gatework')]); import gatework"
    said = [run_python(["-c", program + "; os.environ['LEFT'] = '1'"]).stdout for _ in range(2)]
    assert said == ["[]\n", "[]\n"]
    assert "LEFT" not in os.environ


def test_its_status_is_ours():
    assert run_python(["-c", "raise SystemExit(3)"]).returncode == 3
    assert run_python(["-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9
    failed = run_python(["-W", "error", "-c", "import warnings; warnings.warn('old')"])
    assert failed.returncode == 1
    assert "UserWarning: old" in failed.stderr
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run_python(["-c", "1 / 0"], check=True)
    assert "ZeroDivisionError" in raised.value.stderr
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(["-c", "import time; time.sleep(60)"], timeout=0.5)
