"""AR slices equal their definition, written as a plain double loop, over whatever shapes and documents."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data import ar_slices, bigram_counts
from gatework.data.ar_slices import (
    BigramCounts,
    SliceScores,
    candidate_bigrams,
    default_max_train_count,
    gap_share,
    max_train_count_for,
    recalled_bigrams,
)


def slow_hits(inputs, labels, counts, most, documents):
    """The definition: pairs seen so far in the context, one position after another."""
    rows, length = inputs.shape
    hits = np.zeros((rows, length), dtype=bool)
    for row in range(rows):
        seen = set()
        for i in range(length):
            if i and documents[row, i] != documents[row, i - 1]:
                seen = set()
            second = labels[row, i]
            if second == -100:
                if i + 1 == length or documents[row, i + 1] != documents[row, i]:
                    continue
                second = inputs[row, i + 1]
            pair = (int(inputs[row, i]), int(second))
            hits[row, i] = labels[row, i] != -100 and pair in seen and counts[pair] <= most
            seen.add(pair)
    return hits


@st.composite
def problems(draw):
    """Rows, a training stream in chunks, documents or none."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vocab = draw(st.integers(1, 5))
    shape = draw(st.integers(0, 4)), draw(st.sampled_from([0, 1, 2, 7, 30]))
    stream = generator.integers(0, vocab, draw(st.integers(0, 60))).astype(np.uint16)
    cuts = sorted(generator.integers(0, len(stream) + 1, 3))
    inputs, labels = generator.integers(0, vocab, (2, *shape))
    labels[generator.random(shape) < draw(st.sampled_from([0, 0.3]))] = -100
    documents = np.cumsum(generator.random(shape) < 0.2, axis=1)
    return vocab, stream, np.split(stream, cuts), inputs, labels, documents


@pytest.fixture(params=["table", "runs"])
def small_pieces(request, monkeypatch):
    """Make every limit bite at small sizes, and count with a table of all pairs or without."""
    monkeypatch.setattr(bigram_counts, "_PIECE", 7)
    monkeypatch.setattr(ar_slices, "_BLOCK", 16)
    if request.param == "runs":
        monkeypatch.setattr(bigram_counts, "_MOST_PAIRS", 0)


@pytest.mark.usefixtures("small_pieces")
def test_hits_equal_the_definition():
    @settings(max_examples=150, deadline=None)
    @given(problem=problems(), most=st.integers(0, 5), by_document=st.booleans())
    def check(problem, most, by_document):
        vocab, stream, chunks, inputs, labels, documents = problem
        pairs = Counter(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
        documents = documents if by_document else np.zeros_like(documents)
        expected = slow_hits(inputs, labels, pairs, most, documents)
        seq_idx = torch.from_numpy(documents) if by_document else None
        inputs, labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        wanted = candidate_bigrams(inputs, labels, vocab, seq_idx)
        for among in (None, wanted):
            counts = BigramCounts.count(chunks, vocab, among=among)
            assert counts.num_tokens == len(stream)
            hits = recalled_bigrams(inputs, labels, counts, max_train_count=most, seq_idx=seq_idx)
            assert np.array_equal(hits.numpy(), expected)

    check()


@pytest.mark.usefixtures("small_pieces")
def test_whole_sequences_equal_shifted_ones():
    @settings(max_examples=80, deadline=None)
    @given(problem=problems(), most=st.integers(0, 5))
    def check(problem, most):
        vocab, stream, chunks, tokens, _, documents = problem
        pairs = Counter(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
        labels = np.where(documents[:, 1:] == documents[:, :-1], tokens[:, 1:], -100)
        expected = np.zeros(tokens.shape, dtype=bool)
        expected[:, 1:] = slow_hits(tokens[:, :-1], labels, pairs, most, documents[:, :-1])
        tokens, seq_idx = torch.from_numpy(tokens), torch.from_numpy(documents)
        counts = BigramCounts.count(chunks, vocab)
        hits = ar_slices.ar_hits(tokens, counts, max_train_count=most, seq_idx=seq_idx)
        assert np.array_equal(hits.numpy(), expected)

    check()


@pytest.mark.usefixtures("small_pieces")
def test_counts_equal_a_counter():
    stream = np.random.default_rng(0).zipf(1.3, 500) % 40
    expected = Counter(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))
    first, second = np.divmod(np.arange(1600), 40)
    counts = BigramCounts.count(iter(np.split(stream, [3, 3, 250])), 40)
    assert counts.of(first, second).tolist() == [expected[pair] for pair in zip(first, second, strict=True)]
    table = BigramCounts.from_table(counts.of(first, second).reshape(40, 40))
    assert table.num_tokens == counts.num_tokens == 500
    assert np.array_equal(table.of(second, first), counts.of(second, first))


def test_the_threshold_scales_with_the_training_text():
    assert default_max_train_count(10**10) == 1250
    assert default_max_train_count(3_999_999) == default_max_train_count(0) == 0
    assert default_max_train_count(12_000_001) == 2


def test_the_threshold_of_a_share_is_the_nearest():
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(12, (6, 80), generator=generator)
    inputs, labels = tokens[:, :-1], tokens[:, 1:].masked_fill(torch.arange(79) % 5 == 0, -100)
    counts = BigramCounts.from_table(np.random.default_rng(1).integers(0, 9, (12, 12)))

    def share(most):
        hits = recalled_bigrams(inputs, labels, counts, max_train_count=most)
        return float(hits.sum() / (labels != -100).sum())

    for wanted in (0.0, 0.02, 0.11, 0.2, 1.0):
        chosen = max_train_count_for(wanted, inputs, labels, counts)
        distances = [abs(share(most) - wanted) for most in range(10)]
        assert abs(share(chosen) - wanted) == pytest.approx(min(distances))
    assert max_train_count_for(0.5, inputs[:, :1], labels[:, 1:2], counts) == 0  # nothing is repeated


def test_scores_and_the_share_of_the_gap():
    hits = torch.tensor([[True, False, True, False]])
    labelled = torch.tensor([[True, True, False, True]])
    base, model = SliceScores(), SliceScores()
    for scores, nll in ((base, [1.0, 2.0, 99.0, 3.0]), (model, [4.0, 2.5, 99.0, 3.5])):
        scores.update(torch.tensor([nll]), hits, labelled)
    assert base.share == 1 / 3
    assert base.loss("overall") == 2
    assert model.loss("other") == 3
    assert model.perplexity("ar_hits") == pytest.approx(math.e**4)
    assert gap_share(base, model) == pytest.approx(3 / 4)
    assert gap_share(model, base) is None
    assert gap_share(model, base, cap=False) == pytest.approx(3 / 4)
    assert gap_share(base, base, cap=False) is None
    better_elsewhere = SliceScores()
    better_elsewhere.update(torch.tensor([[4.0, 1.5, 0.0, 3.0]]), hits, labelled)
    assert gap_share(base, better_elsewhere) == 1
    assert gap_share(base, better_elsewhere, cap=False) == pytest.approx(1.2)


def test_nothing_scored_is_not_a_number():
    scores = SliceScores()
    nothing = torch.zeros(0, 5)
    scores.update(nothing, nothing.bool(), nothing.bool())
    assert math.isnan(scores.share)
    assert math.isnan(scores.perplexity("other"))


TOKENS = torch.tensor([[0, 1, 0, 1]])
COUNTS = BigramCounts.from_table(np.zeros((2, 2), np.int64))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: default_max_train_count(-1), "num_train_tokens must be at least 0, got -1"),
        (lambda: BigramCounts.count([np.array([0, 7])], 5), r"chunks must be tokens 0 \.\. 4, got 7"),
        (lambda: BigramCounts.count([np.array([0.5])], 5), "integers, got float64"),
        (lambda: BigramCounts.count([np.zeros((2, 2), int)], 5), r"one dimension, got shape \(2, 2\)"),
        (lambda: BigramCounts.from_table(np.zeros((2, 3), int)), r"got shape \(2, 3\)"),
        (lambda: COUNTS.of(np.array([0]), np.array([2])), r"second must be tokens 0 \.\. 1, got 2"),
        (
            lambda: BigramCounts.count([], 2, among=np.array([1])).of(np.array([1]), np.array([1])),
            r"pair \(1, 1\) is not among",
        ),
        (lambda: recalled_bigrams(TOKENS, TOKENS, COUNTS, max_train_count=-1), "max_train_count"),
        (lambda: recalled_bigrams(TOKENS, TOKENS[:, 1:], COUNTS, max_train_count=0), "labels must have the"),
        (lambda: recalled_bigrams(TOKENS + 1, TOKENS, COUNTS, max_train_count=0), "inputs must be tokens"),
        (lambda: max_train_count_for(1.5, TOKENS, TOKENS, COUNTS), "between 0 and 1, got 1.5"),
        (lambda: max_train_count_for(0.1, TOKENS, TOKENS * 0 - 100, COUNTS), "all are -100"),
        (lambda: SliceScores().update(torch.zeros(2), TOKENS > 0, TOKENS > 0), "one shape"),
        (lambda: gap_share(SliceScores(), SliceScores(tokens={"overall": 1})), "same tokens"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
