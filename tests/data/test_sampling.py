import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data.sampling import (
    choice_rows,
    distinct_rows,
    filler_tokens,
    integers_below,
    slot_probabilities,
    successive_rows,
)
from tests.data.laws import follows

LEAST = 1e-4  # seeds are fixed: a law that holds passes always, a wrong one would have to be lucky


def ordered_counts(drawn: np.ndarray, pool: int) -> np.ndarray:
    """How often each ordered choice of different numbers below ``pool`` was drawn."""
    kinds = {kind: i for i, kind in enumerate(itertools.permutations(range(pool), drawn.shape[1]))}
    return np.bincount([kinds[tuple(row)] for row in drawn.tolist()], minlength=len(kinds))


@settings(max_examples=40, deadline=None)
@given(
    bound=st.sampled_from([1, 2, 3, 255, 256, 4095, 32769, 2**16 - 1, 2**16, 2**16 + 1, 2**33]),
    rows=st.integers(0, 5),
    size=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_integers_stay_below(bound, rows, size, seed):
    drawn = integers_below(np.random.default_rng(seed), bound, rows, size)
    assert drawn.shape == (rows, size)
    assert ((drawn >= 0) & (drawn < bound)).all()


@pytest.mark.parametrize("bound", [2, 3, 7, 100, 4095, 40_000, 2**16, 70_000])
def test_integers_are_equally_likely(bound):
    drawn = integers_below(np.random.default_rng(3), bound, 2000, 100)
    cells = min(bound, 97)
    counts = np.bincount(drawn.ravel().astype(np.int64) % cells, minlength=cells)
    share = np.bincount(np.arange(bound) % cells) / bound
    assert follows(counts, share) > LEAST
    halves = np.array([np.count_nonzero(drawn < bound // 2), np.count_nonzero(drawn >= bound // 2)])
    assert follows(halves, np.array([bound // 2, bound - bound // 2]) / bound) > LEAST


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(0, 7), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_distinct_rows_are_distinct_and_in_their_pools(data, rows, size, seed):
    width = st.one_of(st.integers(size, size + 3), st.integers(size, 9000), st.just(2**27))
    lows = data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=3))
    pools = [(low, low + data.draw(width)) for low in lows]
    for (low, high), drawn in zip(
        pools, distinct_rows(np.random.default_rng(seed), pools, rows, size), strict=True
    ):
        assert drawn.shape == (rows, size)
        assert drawn.dtype == np.int64
        assert all(len(set(row)) == size for row in drawn.tolist())
        assert ((drawn >= low) & (drawn < high)).all()


@pytest.mark.parametrize(("pool", "size"), [(6, 1), (6, 3), (5, 4), (4, 4)])
def test_every_ordered_choice_is_equally_likely(pool, size):
    for drawn, low in zip(
        distinct_rows(np.random.default_rng(5), [(0, pool), (9, 9 + pool)], 40_000, size), (0, 9), strict=True
    ):
        counts = ordered_counts(drawn - low, pool)
        assert follows(counts, np.full(len(counts), 1 / len(counts))) > LEAST


@pytest.mark.parametrize("power_a", [0.01, 1.0, 2.5])
def test_slots_are_drawn_one_after_another(power_a):
    p = slot_probabilities(5, power_a)
    law = np.array(
        [
            p[i] * p[j] / (1 - p[i]) * p[k] / (1 - p[i] - p[j])
            for i, j, k in itertools.permutations(range(5), 3)
        ]
    )
    assert law.sum() == pytest.approx(1)
    fast = ordered_counts(successive_rows(np.random.default_rng(1), p, 60_000, 3), 5)
    assert follows(fast, law) > LEAST
    legacy = ordered_counts(choice_rows(np.random.RandomState(1), 5, 6000, 3, p), 5)
    assert follows(legacy, law) > LEAST
    wrong_order = ordered_counts(successive_rows(np.random.default_rng(1), p, 60_000, 3)[:, ::-1], 5)
    assert power_a == 1.0 or follows(wrong_order, law) < 1e-12


@settings(max_examples=30, deadline=None)
@given(slots=st.integers(1, 70), data=st.data(), rows=st.integers(0, 5))
def test_slots_of_a_row_differ(slots, data, rows):
    size = data.draw(st.integers(1, slots))
    drawn = successive_rows(np.random.default_rng(slots), slot_probabilities(slots, 0.01), rows, size)
    assert drawn.shape == (rows, size)
    assert all(len(set(row)) == size and max(row) < slots for row in drawn.tolist())


def test_power_law():
    np.testing.assert_allclose(slot_probabilities(4, 1.0), [0.25] * 4)
    np.testing.assert_allclose(slot_probabilities(2, 0.5), np.array([1, 2**-0.5]) / (1 + 2**-0.5))


@pytest.mark.bad_input
@pytest.mark.parametrize("power_a", [0.0, float("nan"), float("inf"), 1e4, -1e4])
def test_no_law_without_probabilities(power_a):
    with pytest.raises(ValueError, match=r"power_a must (give all 9 slots|be finite).*got"):
        slot_probabilities(9, power_a)


def test_filler_from_a_generator_equals_the_global_one():
    torch.manual_seed(11)
    expected = torch.randint(50, (3, 8))
    assert torch.equal(filler_tokens(50, 3, 8, 0, torch.Generator().manual_seed(11)), expected)


def test_filler_of_a_seed_is_not_the_stream_of_that_seed():
    filler = filler_tokens(2, 1, 400, 7, None)[0].numpy()
    same_twister = np.random.RandomState(7).randint(0, 2, 400)
    assert 140 < np.count_nonzero(filler == same_twister) < 260
    assert torch.equal(filler_tokens(2, 1, 400, 7, None)[0], torch.from_numpy(filler))
