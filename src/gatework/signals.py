"""Ctrl-C and SIGTERM: noted, and acted on where it is right to stop, or the end of the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Literal

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Note the first SIGINT or SIGTERM instead of raising wherever the program is.

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


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
