"""Run programs as ``python PROGRAM`` would, without importing PyTorch anew each time.

The first call starts one process (the fork server of :mod:`multiprocessing`) that imports what nearly every
program needs and then waits. Each program is a child forked from it: a process of its own with its own
``sys.argv``, folder, environment, streams and exit status, which has those modules already. Nothing of
gatework is among them. Tests of what a fresh interpreter does (what it imports, how much memory it needs, how
it is killed) start a real one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.nn.attention.flex_attention",
    "numba",
    "scipy.fft",
    "lightning",
    "torchmetrics",
    "transformers.modeling_utils",
)
"""What the server imports, besides this file."""

# In the server these are a fresh interpreter's; its children are given the path of the process that asks.
_PATH = sys.path.copy()
_PYTHONPATH = os.environ.get("PYTHONPATH", "").split(os.pathsep)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*PRELOADED, __name__])


def run_python(
    arguments: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    timeout: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS...`` in a warm process; return what ``subprocess.run`` would, as text.

    Args:
        arguments: ``[-W ACTION] -c CODE | -m MODULE | FILE [ARGUMENT ...]``.
        cwd: Where the program runs.
        env: Its environment; what is read when PyTorch is imported, such as ``OMP_NUM_THREADS``, has
            been read already, from this process's.
        check: Whether a status other than 0 raises.
        timeout: Seconds after which the program is killed.

    Raises:
        subprocess.CalledProcessError: If ``check`` is set and the program failed, with a note of its errors.
        subprocess.TimeoutExpired: If it took too long.
    """
    arguments = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        settings = (
            arguments,
            str(cwd or Path.cwd()),
            dict(os.environ if env is None else env),
            str(out),
            str(err),
        )
        process = CONTEXT.Process(target=_be_python, args=settings)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        said, complained = (path.read_text() if path.exists() else "" for path in (out, err))
    status = process.exitcode
    assert status is not None
    if check and status:
        error = subprocess.CalledProcessError(status, arguments, said, complained)
        error.add_note(complained)
        raise error
    return subprocess.CompletedProcess(arguments, status, said, complained)


def _be_python(arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """In the child: become the program."""
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "torch" in sys.modules and (threads := environment.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))
    while arguments[0] == "-W":
        warnings.simplefilter(arguments[1])  # type: ignore[arg-type]
        arguments = arguments[2:]
    paths = [path for path in _PATH if path and path not in _PYTHONPATH]
    paths[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        if arguments[0] == "-c":
            sys.path[:], sys.argv[:] = ["", *paths], ["-c", *arguments[2:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        elif arguments[0] == "-m":
            sys.path[:], sys.argv[:] = [folder, *paths], arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[:], sys.argv[:] = [str(Path(arguments[0]).parent), *paths], arguments
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
