"""What surrounds a command: closed pipes and streams, Ctrl-C at any moment, scripts that are no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

GATEWORK = [sys.executable, "-m", "gatework"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def shell(line, **options):
    """Run a line of a shell, in which $G is gatework."""
    environment = {**ENVIRONMENT, "G": " ".join(GATEWORK)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=environment, capture_output=True, text=True, **options
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("$G list | head -1", 0, ""),
        ("$G compare --help | head -1", 0, ""),
        ("$G list >&-", 0, ""),
        ("$G lst 2>&-", 2, ""),
        ("$G fit --nothing 2>&1 | head -0", 2, ""),
        ("$G list > /dev/full", 1, "cannot write to standard output: No space left on device"),
    ],
)
def test_a_closed_stream_is_no_traceback(line, code, error, tmp_path):
    done = shell(line, cwd=tmp_path)
    assert done.returncode == code
    assert error in done.stderr
    assert done.stderr.count("\n") == (1 if error else 0)
    assert [*tmp_path.iterdir()] == []


INTERRUPTED = """
import os, signal, sys
from gatework.__main__ import main
signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
del sys.argv[1]
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("seconds", ["0.001", "0.1", "0.5", "1.5"])
def test_ctrl_c_is_one_line_at_any_moment(seconds, tmp_path):
    words = ["bench", "attention", "--lengths=[8192]", "--output=out"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, seconds, *words],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr.splitlines()[-1] == "gatework: error: interrupted"
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_the_middle_of_an_import_ends_the_process(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nprint('went on')\n"
    )
    program = (
        "from gatework.signals import end_on_interrupt, raise_on_interrupt\n"
        "end_on_interrupt(); raise_on_interrupt()\n"
        "try:\n    import slow\nexcept KeyboardInterrupt:\n    print('caught')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "gatework: error: interrupted\n"


SCRIPT = """
from gatework.study.executor import LocalExecutor
from gatework.study.spec import RunSpec
from gatework.study.worker import Setup

run = RunSpec("recall", {}, "default", "a", {"name": "a"}, 8, 0.1, 0, {})
executor = LocalExecutor(Setup("builtins:dict"), num_workers=1)
executor.submit(run)
ended = []
while not ended:
    ended = executor.poll(1.0)
print(ended[0].result == run.to_json(), ended[0].error)
executor.close()
"""


@pytest.mark.parametrize("words", [["-"], ["-c", SCRIPT]])
def test_workers_start_from_a_script_that_is_no_file(words, tmp_path):
    done = subprocess.run(
        [sys.executable, *words],
        input=SCRIPT,
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "True None\n", done.stderr
    assert done.stderr == ""
