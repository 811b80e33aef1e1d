"""A pytest plugin: which tests cost how much processor time, and a limit that no quick test may pass.

Processor time, not wall time: it hardly depends on what else the machine does. A test is charged for its
setup, call and teardown, in its own process and in those it started, even if they still run (as far as
``/proc`` shows them; a daemon that left the process tree is not seen). A fixture of a module or session is
charged to the test that first asked for it; the list names such a fixture if it took a second.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT = 60.0
"""Processor seconds that a test may take without the mark ``slow``."""
LISTED = 10
"""How many of the slowest tests are printed, unless ``--cpu-list`` says otherwise."""
NAMED_FIXTURE = 1.0
"""A fixture wider than a function that takes as many seconds is named beside its test."""

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of its descendants, both ended and running."""
    times = os.times()
    return sum(times[:4]) + _running_descendants(os.getpid())


def _running_descendants(process: int) -> float:
    """Sum what the running descendants of a process have used, with their ended children; 0 without /proc."""
    total = 0.0
    try:
        threads = os.listdir(f"/proc/{process}/task")
    except OSError:
        return total
    for thread in threads:
        try:
            children = Path(f"/proc/{process}/task/{thread}/children").read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            total += sum(map(int, fields[11:15])) / _TICKS + _running_descendants(int(child))
    return total


class Meter:
    """Runs where the tests run: writes the seconds of each phase into its report."""

    def __init__(self) -> None:
        self._seen = self._gone = 0.0
        self._mark = self.count()
        self._fixtures: list[tuple[str, float]] = []

    def count(self) -> float:
        """Return :func:`cpu_seconds`, with those of descendants that nobody waited for, as last seen."""
        seconds = cpu_seconds()
        self._gone += max(self._seen - seconds, 0.0)
        self._seen = seconds
        return seconds + self._gone

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        """Begin to count with the test: what came before, such as the collection, is nobody's."""
        self._mark = self.count()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Iterator[None]:
        """Count what fixtures wider than a function take; one that uses another includes it."""
        if fixturedef.scope == "function":
            return (yield)
        began = self.count()
        try:
            return (yield)
        finally:
            self._fixtures.append((fixturedef.argname, self.count() - began))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Reports travel from the workers of pytest-xdist with all their attributes."""
        report = yield
        now = self.count()
        report.cpu_seconds = now - self._mark
        report.cpu_fixtures = [pair for pair in self._fixtures if pair[1] >= NAMED_FIXTURE]
        report.marked_slow = item.get_closest_marker("slow") is not None
        self._mark, self._fixtures = now, []
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the controlling process what this one has used in all, start and collection included."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["cpu_seconds"] = self.count()


class Ledger:
    """Runs where the reports arrive: adds up, prints, and fails the run if a quick test was not quick."""

    def __init__(self, meter: Meter, listed: int) -> None:
        self._meter, self._listed = meter, listed
        self._tests: dict[str, float] = defaultdict(float)
        self._fixtures: dict[str, list[tuple[str, float]]] = defaultdict(list)
        self._slow: set[str] = set()
        self._workers = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of one test."""
        self._tests[report.nodeid] += getattr(report, "cpu_seconds", 0.0)
        self._fixtures[report.nodeid] += getattr(report, "cpu_fixtures", [])
        if getattr(report, "marked_slow", False):
            self._slow.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Add the total of a worker; its tests are part of it."""
        self._workers += getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0)

    def over_the_limit(self) -> list[str]:
        """Return the tests that are not marked slow and should be, or better, should be quicker."""
        return [test for test, seconds in self._tests.items() if seconds > LIMIT and test not in self._slow]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let the run fail for a test over the limit."""
        if self.over_the_limit() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the slowest tests, the folders and, in red, what fails the run."""
        if not self._tests:
            return
        terminalreporter.section("processor seconds")
        for test, seconds in sorted(self._tests.items(), key=lambda pair: -pair[1])[: self._listed]:
            named = ", ".join(f"{name} {spent:.1f}" for name, spent in self._fixtures[test])
            mark = " [slow]" if test in self._slow else ""
            terminalreporter.write_line(
                f"{seconds:7.1f}  {test}{mark}" + (f"  (fixture {named})" if named else "")
            )
        terminalreporter.write_line("")
        for folder, (seconds, count) in sorted(self.folders().items(), key=lambda pair: -pair[1][0]):
            terminalreporter.write_line(f"{seconds:7.1f}  {folder} ({count} tests)")
        tests = sum(self._tests.values())
        # With workers, of this process no more than itself: they are among its descendants.
        total = self._workers + sum(os.times()[:2]) if self._workers else self._meter.count()
        total = max(tests, total)  # workers that were interrupted say nothing
        terminalreporter.write_line(f"{total - tests:7.1f}  outside tests: start, collection, reporting")
        terminalreporter.write_line(f"{total:7.1f}  in all")
        for test in self.over_the_limit():
            line = f"TOO SLOW: {test} took {self._tests[test]:.1f} processor seconds, more than {LIMIT:.0f}"
            terminalreporter.write_line(f"{line}: make it quicker, or mark it slow", red=True)

    def folders(self) -> dict[str, tuple[float, int]]:
        """Return the seconds and the number of tests of each folder of the first two levels."""
        sums: dict[str, tuple[float, int]] = {}
        for test, seconds in self._tests.items():
            parts = test.partition("::")[0].split("/")
            folder = "/".join(parts[: min(2, len(parts) - 1)]) or "."
            before, count = sums.get(folder, (0.0, 0))
            sums[folder] = before + seconds, count + 1
        return sums


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a reader ask for more than the ten slowest."""
    parser.addoption("--cpu-list", type=int, default=LISTED, metavar="N", help="print the N slowest tests")


def pytest_configure(config: pytest.Config) -> None:
    """Measure in the processes that run tests, add up in the one that prints."""
    meter = Meter()
    config.pluginmanager.register(meter, "cpu-time-meter")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Ledger(meter, config.getoption("cpu_list")), "cpu-time-ledger")
