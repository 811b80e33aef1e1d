import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.masks import (
    DOCUMENT_HISTOGRAM,
    DOCUMENT_LENGTHS,
    CausalDocument,
    Document,
    log_normal_histogram,
    sample_document_lengths,
)


def test_the_fixed_list_has_the_known_densities():
    assert sum(DOCUMENT_LENGTHS) == 4096
    assert CausalDocument(DOCUMENT_LENGTHS).density(4096, 4096) == pytest.approx(0.10444, abs=5e-6)
    assert Document(DOCUMENT_LENGTHS).density(4096, 4096) == pytest.approx(0.20863, abs=5e-6)


@settings(max_examples=50, deadline=None)
@given(total=st.integers(0, 9999), seed=st.integers(0, 999))
def test_documents_fill_the_sequence(total, seed):
    lengths = sample_document_lengths(total, seed=seed)
    assert sum(lengths) == total
    assert all(length >= 1 for length in lengths)
    assert lengths == sample_document_lengths(total, seed=seed)


def test_the_authors_draws_are_met():
    """With their histogram and seed: the documents of the golden file."""
    drawn = sample_document_lengths(48, [(1, 6, 0.4), (6, 16, 0.6)], seed=3)
    assert drawn == (5, 5, 15, 1, 13, 2, 6, 1)


def test_both_ends_of_a_bin_are_drawn():
    assert set(sample_document_lengths(3000, [(2, 4, 1.0)])[:-1]) == {2, 3, 4}


def test_a_generator_goes_on():
    rng = random.Random(5)
    assert sample_document_lengths(500, seed=rng) != sample_document_lengths(500, seed=rng)


def test_the_histogram_follows_its_law():
    shares = [share for *_, share in DOCUMENT_HISTOGRAM]
    assert 0.999 < sum(shares) < 1
    assert all(last + 1 == first for (_, last, _), (first, *_) in pairwise(DOCUMENT_HISTOGRAM))
    assert (DOCUMENT_HISTOGRAM[0][0], DOCUMENT_HISTOGRAM[-1][1]) == (1, 1 << 15)
    below = sum(share for _, last, share in log_normal_histogram(256, 1.0) if last < 256)
    assert below == pytest.approx(0.5, abs=1e-3)


@pytest.mark.bad_input
def test_wrong_histograms_are_named():
    with pytest.raises(ValueError, match="total must be at least 0, got -1"):
        sample_document_lengths(-1)
    for bins in ([(0, 3, 1.0)], [(4, 3, 1.0)]):
        with pytest.raises(ValueError, match="1 <= first <= last"):
            sample_document_lengths(9, bins)
    for bins in ([], [(1, 3, 0.0)], [(1, 3, -1.0)], [(1, 3, float("nan"))]):
        with pytest.raises(ValueError, match="shares of at least 0"):
            sample_document_lengths(9, bins)
    with pytest.raises(ValueError, match="median must be positive, got 0"):
        log_normal_histogram(0, 1.0)
