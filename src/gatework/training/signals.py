"""Ctrl-C and SIGTERM while a model trains: noted, and acted on where a checkpoint is right."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class InterruptedTrainingError(RuntimeError):
    """Training was told to stop, and has stopped where it can go on later.

    Attributes:
        signum: The signal that told it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Note the first signal; the second is handled as if nobody noted any.

    Attributes:
        received: Number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _NUMBERS:
            if _in_main_thread() and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.getsignal(number)
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _in_main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)

    def listen(self) -> None:
        """Take the signals, also back from a library that took them meanwhile."""
        if _in_main_thread() and self.received is None:
            for number in self._before:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other, before in self._before.items():
            signal.signal(other, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
