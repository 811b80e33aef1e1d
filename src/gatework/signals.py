"""Ctrl-C and SIGTERM: noted, and acted on where it is right to stop, or the end of the process at once.

On Windows nobody can send SIGTERM: whoever ends a process there gives it no time. What asks for an end
politely is Ctrl-Break, which is also what a console that is closed sends; it counts like SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, Literal

_BREAK = (signal.SIGBREAK,) if hasattr(signal, "SIGBREAK") else ()
_NUMBERS = (signal.SIGINT, signal.SIGTERM, *_BREAK)


class StopSignals:
    """Note the first SIGINT or SIGTERM (on Windows, SIGBREAK too) instead of raising wherever the program is.

    Signals that the parent process ignores stay ignored, and those that were not set from Python stay as they
    are. Python lets only the main thread handle signals: in another one, nothing is noted.

    Args:
        second: What the next signal does: ``"as before"`` what it would have done if nobody had noted any
            (Ctrl-C raises ``KeyboardInterrupt``), ``"nothing"`` nothing.

    Attributes:
        received: Number of the first signal, or None.
    """

    def __init__(self, *, second: Literal["as before", "nothing"] = "as before") -> None:
        self.received: int | None = None
        self._second = second
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if _in_main_thread():
            for number in _NUMBERS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    self._before[number] = handler
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def listen(self) -> None:
        """Take the signals, also back from a library that took them meanwhile."""
        if _in_main_thread() and (self.received is None or self._second == "nothing"):
            for number in self._before:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        if self._second == "as before":
            self._restore()

    def _restore(self) -> None:
        if _in_main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once, with one line and exit code 130.

    For the time when there is nothing to tidy up and an exception could get lost: while modules are imported,
    and while Python ends. If Ctrl-C is ignored or has another meaning already, nothing changes.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _raise):
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` again, after :func:`end_on_interrupt`.

    In the middle of an import it still ends the process: NumPy and others survive no exception there.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"gatework: error: interrupted\n")
    os._exit(128 + number)


@contextmanager
def sigterm_ends_process() -> Iterator[None]:
    """Let SIGTERM end the process at once, with exit code 143, and nothing be cleaned up or written.

    In another thread than the main one, nothing changes.
    """
    if not _in_main_thread() or (before := signal.getsignal(signal.SIGTERM)) is None:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is started in the block, until it calls :func:`ignore_interrupts`.

    In this process Ctrl-C comes when the block is over. Windows cannot block signals: there, Ctrl-C may end a
    process that has just been started, and what waits for it must take that for a part of its own end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started on first use otherwise, and it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts() -> None:
    """Leave it to the process that started this one what Ctrl-C means, which reaches both."""
    for number in (signal.SIGINT, *_BREAK):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
