"""The task that the tests of training train for."""

from __future__ import annotations

import pytest

from gatework import tasks
from tests.training.runs import NoisyRecall


@pytest.fixture(autouse=True)
def _noisy_task(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "noisy", NoisyRecall)
