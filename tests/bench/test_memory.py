"""Peak memory: a known amount is found, a failure is an answer, the server outlives a child."""

from __future__ import annotations

import os

import pytest
import torch

from gatework.bench.memory import PeakMeter, is_available

pytestmark = pytest.mark.skipif(not is_available(), reason="needs /proc/self/clear_refs")
MIB = 2**20


def prepare(description):
    """Calls that hold so many MiB at once; the second of them is freed before the third is made."""
    if description["mib"] == 0:
        os._exit(3)
    if description["mib"] < 0:
        raise ValueError("no memory is less than none")

    def call():
        for _ in range(3):
            torch.ones(description["mib"] * MIB // 4)

    return lambda: torch.ones(10), call


def test_a_known_amount_is_found_whatever_came_before():
    with PeakMeter("tests.bench.test_memory:prepare", num_threads=1) as meter:
        found = {mib: meter.measure({"mib": mib}) for mib in (200, 20, -1, 0, 50)}
    for mib in (200, 20, 50):
        peak, reason = found[mib]
        assert reason is None
        assert mib - 1 <= peak / MIB <= mib + 4
    assert found[-1] == (None, "ValueError: no memory is less than none")
    peak, reason = found[0]
    assert peak is None
    assert "ended with status" in reason


def test_a_server_that_dies_is_replaced():
    with PeakMeter("tests.bench.test_memory:prepare", num_threads=1) as meter:
        meter.measure({"mib": 1})
        meter._server.kill()
        meter._server.wait()
        assert meter.measure({"mib": 20}) == (None, "the process that measures memory ended")
        peak, _ = meter.measure({"mib": 20})
        assert 19 <= peak / MIB <= 24
