"""The first signal is noted, the second does what it was said to do, and afterwards all is as before."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from gatework.signals import StopSignals, sigterm_ends_process

BOTH = (signal.SIGINT, signal.SIGTERM)


class Handler:
    """A handler that was there before."""

    def __init__(self):
        self.heard = []

    def __call__(self, number, frame):
        self.heard.append(number)


@pytest.fixture
def before():
    """Handlers of the test's own, under which no signal ends the tests."""
    originals = {number: signal.getsignal(number) for number in BOTH}
    handler = Handler()
    for number in BOTH:
        signal.signal(number, handler)
    yield handler
    for number, original in originals.items():
        signal.signal(number, original)


def handlers():
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("second", ["as before", "nothing"])
def test_the_first_is_noted(before, number, second):
    with StopSignals(second=second) as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
    assert before.heard == []


def test_the_second_is_handled_as_before(before):
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM
    assert before.heard == [signal.SIGINT, signal.SIGTERM]


def test_the_second_ctrl_c_raises_where_python_would(before):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGINT


def test_the_second_does_nothing_on_request(before):
    with StopSignals(second="nothing") as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (stop.received, before.heard) == (signal.SIGTERM, [])


@pytest.mark.parametrize("second", ["as before", "nothing"])
def test_ignored_signals_stay_ignored(before, second):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals(second=second) as stop:
        stop.listen()
        assert handlers()[0] is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM
    assert handlers() == [signal.SIG_IGN, before]


def test_handlers_not_set_from_python_stay(before, monkeypatch):
    real = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number)
    )
    with StopSignals(), sigterm_ends_process():
        assert real(signal.SIGTERM) is before
    assert real(signal.SIGTERM) is before


@pytest.mark.parametrize("second", ["as before", "nothing"])
@pytest.mark.parametrize("signals", [[], [signal.SIGINT]])
def test_handlers_are_restored(before, second, signals):
    with contextlib.suppress(ZeroDivisionError), StopSignals(second=second):
        assert before not in handlers()
        for number in signals:
            signal.raise_signal(number)
        raise ZeroDivisionError
    assert handlers() == [before, before]


def test_listen_takes_the_signals_back(before):
    library = Handler()
    with StopSignals() as stop:
        signal.signal(signal.SIGTERM, library)
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received, library.heard) == (signal.SIGTERM, [])
        stop.listen()  # too late: the next one is handled as before
        signal.raise_signal(signal.SIGTERM)
    assert (before.heard, library.heard) == ([signal.SIGTERM], [])
    assert handlers() == [before, before]


def test_listen_keeps_on_ignoring(before):
    library = Handler()
    with StopSignals(second="nothing") as stop:
        signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGTERM, library)
        stop.listen()
        signal.raise_signal(signal.SIGTERM)
    assert (stop.received, before.heard, library.heard) == (signal.SIGINT, [], [])


@pytest.mark.parametrize("second", ["as before", "nothing"])
def test_another_thread_changes_nothing(before, second):
    seen = []

    def work():
        with StopSignals(second=second) as stop, sigterm_ends_process():
            stop.listen()
            seen.append((stop.received, handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, [before, before])]
    assert handlers() == [before, before]


def test_sigterm_ends_the_process_without_cleaning_up():
    program = (
        "import signal\nfrom gatework.signals import sigterm_ends_process\n"
        "try:\n    with sigterm_ends_process():\n        signal.raise_signal(signal.SIGTERM)\n"
        "finally:\n    print('cleaned up', flush=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")


def test_sigterm_is_handled_as_before_afterwards(before):
    with contextlib.suppress(ZeroDivisionError), sigterm_ends_process():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ZeroDivisionError
    assert handlers() == [before, before]
