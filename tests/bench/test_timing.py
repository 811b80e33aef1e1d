"""Turns: who is timed when, how often, and what is said of the times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatework.bench.timing import MOST_TURNS, summarise, take_turns


def test_sides_take_turns_and_the_first_is_not_counted():
    order: list[str] = []

    def side(name: str, seconds: list[float]):
        def call() -> float:
            order.append(name)
            return seconds.pop(0)

        return call

    found = take_turns({"a": side("a", [100.0, 1, 2, 3]), "b": side("b", [100.0, 4, 4, 4])}, repeats=3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found["a"] == (2, 1.4, pytest.approx(2.6), 3)
    assert found["b"].median == 4


def test_short_calls_are_repeated_until_their_time_is_up():
    assert take_turns({"a": lambda: 0.25, "b": lambda: 1.0}, repeats=1, min_time=1.0)["b"].turns == 4
    assert take_turns({"a": lambda: 0.0}, repeats=1, min_time=1.0)["a"].turns == MOST_TURNS


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=9))
def test_median_and_quantiles_are_those_of_torch(values):
    import torch

    shares = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    expected = torch.tensor(values, dtype=torch.float64).quantile(shares).tolist()
    found = summarise(values)
    assert found == (*(pytest.approx(value, abs=1e-9) for value in expected), len(values))
    assert all(isinstance(value, float) for value in found[:3])
    assert found.low <= found.median <= found.high


@pytest.mark.bad_input
@pytest.mark.parametrize("options", [{"repeats": 0}, {"repeats": 1, "min_time": -1.0}])
def test_impossible_turns_are_named(options):
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        take_turns({}, **options)
