"""Peak memory of a call, each in a process of its own.

A process that has computed before keeps memory and reuses it, so that its peak says little. Here a server
process imports everything and computes nothing; for each call it forks a child, which reports and ends.
The child runs a small call first (which loads and compiles code), notes its resident memory, makes the real
call twice, and reports the highest resident memory during the second one over what it noted: tensors that
the call needs at once, its result, and what the first call left in caches (the plan of a mask, say), but
neither the inputs nor what compiling needed for a moment.

Only Linux can forget an earlier peak (``/proc/self/clear_refs``); elsewhere nothing is measured.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
#: Tensors of more than this are mapped, and given back when they are freed: what is freed is not counted.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}

#: What a child is to do: a small call, and the one to be measured.
Calls = tuple[Callable[[], object], Callable[[], object]]


class PeakMeter:
    """Measures calls that are described by JSON; a context manager, whose end ends the server.

    Args:
        prepare: ``"module:function"``: makes the :data:`Calls` of a description.
        num_threads: Threads of PyTorch in the children.
    """

    def __init__(self, prepare: str, *, num_threads: int) -> None:
        self._words = [prepare, str(num_threads)]
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> PeakMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def measure(self, description: Mapping[str, Any]) -> tuple[int | None, str | None]:
        """Return the peak in bytes, or ``None`` and why there is none."""
        if not is_available():
            return None, "peak memory can only be measured on Linux"
        server = self._start()
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            server.stdin.write(json.dumps(description) + "\n")
            server.stdin.flush()
            line = server.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._stop()  # the next call gets a new one
            return None, "the process that measures memory ended"
        answer = json.loads(line)
        return answer["peak_bytes"], answer["reason"]

    def _start(self) -> subprocess.Popen[str]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve()", *self._words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                env=os.environ | _MALLOC,
                start_new_session=True,  # Ctrl-C is for the parent, which ends this process
            )
        return self._server

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # with the child that may be computing
            server.communicate()


def is_available() -> bool:
    """Whether this system lets a process forget its peak of memory; what is below is for such a one only."""
    return hasattr(os, "fork") and os.access(_CLEAR_REFS, os.W_OK)


def serve() -> None:
    """Answer every description on standard input by one line on standard output; the arguments say how."""
    prepare, num_threads = sys.argv[1], int(sys.argv[2])
    module, _, name = prepare.partition(":")
    function = getattr(importlib.import_module(module), name)
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with os.fdopen(writer, "w", encoding="utf-8") as answers:
                answers.write(json.dumps(_answer(function, json.loads(line), num_threads)))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as answers:
            answer = answers.read()
        _, status = os.waitpid(child, 0)
        killed = {"peak_bytes": None, "reason": f"the process ended with status {status}, out of memory?"}
        print(answer or json.dumps(killed), flush=True)


def _answer(
    prepare: Callable[[Mapping[str, Any]], Calls], description: Mapping[str, Any], num_threads: int
) -> dict[str, Any]:
    """Measure one call in this process; a failure is an answer too."""
    import torch

    torch.set_num_threads(num_threads)
    try:
        warm_up, call = prepare(description)
        return {"peak_bytes": peak_of(warm_up, call), "reason": None}
    except Exception as error:
        return {"peak_bytes": None, "reason": f"{type(error).__name__}: {error}"}


def peak_of(warm_up: Callable[[], object], call: Callable[[], object]) -> int:
    """Return the highest resident memory of the second ``call`` over that before the first one, in bytes.

    Only a process that has computed nothing before gives a number that means something.
    """
    warm_up()
    _give_back()
    before = _resident("VmRSS")
    call()
    _give_back()
    _CLEAR_REFS.write_text("5", encoding="utf-8")
    call()
    return max(0, _resident("VmHWM") - before)


def _give_back() -> None:
    """Free what nothing refers to, and return it to the system where the allocator knows how."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
