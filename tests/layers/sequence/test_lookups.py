"""Look-ups at selected positions against their rules, written out position by position."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.layers.sequence import lookups
from gatework.layers.sequence.lookups import (
    ProgrammaticLookups,
    RandomLookups,
    SigmoidLookups,
    occurred_before,
)
from tests.layers.sequence import streaming

DIM, LENGTH = 8, 43


def randomised(mixer):
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return mixer.double()


def attended(mixer, x, t):
    """Causal attention of position ``t`` of one sequence, head by head."""
    q, k, v = mixer.qkv(x).split(DIM, 1)
    y, width = torch.zeros(DIM, dtype=x.dtype), DIM // mixer.num_heads
    for head in range(mixer.num_heads):
        part = slice(head * width, (head + 1) * width)
        weights = (k[: t + 1, part] @ q[t, part] / math.sqrt(width)).softmax(0)
        y[part] = weights @ v[: t + 1, part]
    return mixer.out_proj(y)


def expected(mixer, x, selected, weights=None):
    """``x_t + s_t * attention(x)_t`` at the selected positions, ``x_t`` elsewhere."""
    y = x.clone()
    for batch in range(x.shape[0]):
        for t in range(x.shape[1]):
            if selected[batch][t]:
                y[batch, t] += (1 if weights is None else weights[batch, t]) * attended(mixer, x[batch], t)
    return y


def best_so_far(scores, budget):
    """Whether each score is among the highest up to its position; of equal ones the earlier is higher."""
    selected = []
    for t, score in enumerate(scores):
        at_least_as_high = sum(earlier >= score for earlier in scores[:t])
        selected.append(at_least_as_high < (budget or math.ceil(math.sqrt(t + 1))))
    return selected


@pytest.mark.parametrize("num_lookups", [None, 3])
def test_sigmoid_lookups_are_their_rule(num_lookups):
    mixer = randomised(SigmoidLookups(DIM, num_heads=2, num_lookups=num_lookups))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    x[:, 20] = x[:, 4]  # ties
    scores = mixer.selecting(x).squeeze(2)
    everywhere = torch.ones(2, LENGTH)
    torch.testing.assert_close(mixer.train()(x), expected(mixer, x, everywhere, scores.sigmoid()))
    selected = [best_so_far(row, num_lookups) for row in scores.tolist()]
    assert 2 * max(map(sum, selected)) < LENGTH  # so that few queries are picked out
    torch.testing.assert_close(mixer.eval()(x), expected(mixer, x, selected, scores.sigmoid()))


@pytest.mark.parametrize("num_lookups", [None, 5, 60])
def test_the_authors_select_from_the_whole_sequence(num_lookups):
    mixer = randomised(SigmoidLookups(DIM, num_lookups=num_lookups, compat="official")).eval()
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    scores = mixer.selecting(x).squeeze(2)
    count = min(LENGTH, num_lookups or math.ceil(math.sqrt(LENGTH)))
    selected = torch.zeros(2, LENGTH).scatter(1, scores.argsort(descending=True)[:, :count], 1.0)
    torch.testing.assert_close(mixer(x), expected(mixer, x, selected, scores.sigmoid()))
    with pytest.raises(ValueError, match=r'compat="official" looks ahead'):
        mixer.prefill(x)


@pytest.mark.parametrize("num_lookups", [None, 2])
def test_the_auxiliary_loss_is_its_formula(num_lookups):
    mixer = randomised(SigmoidLookups(DIM, num_lookups=num_lookups, penalty=0.5))
    x = torch.randn(2, 25, DIM, dtype=torch.float64)
    mean = mixer.selecting(x).sigmoid().mean()
    torch.testing.assert_close(mixer.auxiliary_loss(x), 0.5 * (mean - (num_lookups or 5) / 25))
    mixer.num_lookups = 25
    assert mixer.auxiliary_loss(x) == 0
    assert mixer.auxiliary_loss(x[:, :0]) == 0
    assert mixer.eval().auxiliary_loss(x) is None


@pytest.mark.parametrize("options", [{}, {"num_heads": 2, "num_lookups": 3}])
def test_evaluation_streams_and_sees_no_future(options):
    mixer = randomised(SigmoidLookups(DIM, **options)).eval()
    streaming.check_streaming(mixer, LENGTH)
    streaming.check_step_is_pure(mixer)
    streaming.check_empty(mixer)
    for at in (1, 20, LENGTH - 1):
        streaming.check_causality(mixer, LENGTH, at)


def test_half_precision_evaluation_selects_the_same():
    mixer = randomised(SigmoidLookups(DIM)).float().eval()
    streaming.check_autocast(mixer)


@pytest.mark.parametrize("options", [{}, {"num_lookups": 4}, {"share": 0.3}])
def test_random_lookups_are_their_rule(options):
    mixer = randomised(RandomLookups(DIM, num_heads=2, **options))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    selected = mixer._selected(x, 0)
    assert torch.equal(selected[0], selected[1])
    torch.testing.assert_close(mixer(x), expected(mixer, x, selected))
    # Any part of a sequence draws what the whole draws; shares are as stated, other seeds draw others.
    assert torch.equal(mixer._selected(x[:, :10], 20), selected[:, 20:30])
    many = torch.empty(1, 20000, DIM)
    position = torch.arange(1.0, 20001)
    share = options.get("share") or (options.get("num_lookups") or position.sqrt().ceil()) / position
    stated = torch.as_tensor(share).expand(20000).clamp(max=1).sum()
    assert abs(mixer._selected(many, 0).sum() - stated) < 4 * stated.sqrt()
    mixer.seed = 1
    assert not torch.equal(
        mixer._selected(many, 0)[0, :2000], RandomLookups(DIM, **options)._selected(many, 0)[0, :2000]
    )


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 3).flatmap(
        lambda batch: st.integers(0, 14).flatmap(
            lambda length: st.lists(
                st.lists(st.integers(-2, 2), min_size=length, max_size=length), min_size=batch, max_size=batch
            )
        )
    ),
    order=st.integers(1, 3),
)
def test_repeated_tokens_are_found(rows, order):
    length = len(rows[0]) if rows else 0
    tokens = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
    found = occurred_before(tokens, order)
    for row, marks in zip(rows, found.tolist(), strict=True):
        grams = [tuple(row[t - order + 1 : t + 1]) if t >= order - 1 else None for t in range(length)]
        assert marks == [gram is not None and gram in grams[:t] for t, gram in enumerate(grams)]
    if length:
        assert torch.equal(lookups._last_occurred_before(tokens, order), found[:, -1:])


@pytest.mark.parametrize("order", [1, 2])
def test_programmatic_lookups_are_their_rule(order):
    mixer = randomised(ProgrammaticLookups(DIM, num_heads=2, order=order))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    tokens = torch.randint(60 if order == 1 else 8, (2, LENGTH))
    selected = occurred_before(tokens, order)
    assert 0 < 2 * selected.sum(1).max() < LENGTH
    torch.testing.assert_close(mixer(x, tokens=tokens), expected(mixer, x, selected))


def test_queries_attend_in_pieces(monkeypatch):
    mixer = randomised(RandomLookups(DIM, share=0.3))
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    whole = mixer(x)
    monkeypatch.setattr(lookups, "_QUERIES", 4)
    torch.testing.assert_close(mixer(x), whole)


def test_only_selected_queries_attend(monkeypatch):
    """The point of selecting: attention over all keys for few queries."""
    rows = []
    attend = lookups.attention
    monkeypatch.setattr(
        lookups, "attention", lambda q, k, v, **options: rows.append(q.shape[2]) or attend(q, k, v, **options)
    )
    mixer = RandomLookups(DIM)
    mixer(torch.randn(2, 400, DIM))
    assert rows == [int(mixer._selected(torch.empty(1, 400, DIM), 0).sum())]
    assert rows[0] < 60


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigmoidLookups(DIM, num_heads=3), "num_heads must divide dim=8, got 3"),
        (lambda: SigmoidLookups(DIM, num_lookups=0), "num_lookups must be at least 1, got 0"),
        (lambda: SigmoidLookups(DIM, penalty=-1.0), "penalty must be at least 0"),
        (lambda: SigmoidLookups(DIM, compat="authors"), "compat must be one of None, official"),
        (lambda: RandomLookups(DIM, share=1.5), "share must be between 0 and 1, got 1.5"),
        (lambda: RandomLookups(DIM, share=0.5, num_lookups=3), "share or num_lookups, not both"),
        (lambda: RandomLookups(DIM, seed=-1), "seed must be at least 0"),
        (lambda: RandomLookups(DIM, dropout=1.0), "dropout must be at least 0 and below 1"),
        (lambda: ProgrammaticLookups(DIM, order=0), "order must be at least 1, got 0"),
        (lambda: RandomLookups(DIM)(torch.randn(2, 3, 5)), r"x must have 8 channels, got shape \(2, 3, 5\)"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
def test_tokens_that_are_missing_or_do_not_fit_are_named():
    mixer, x = ProgrammaticLookups(DIM), torch.randn(2, 5, DIM)
    for call in (mixer, mixer.prefill, lambda x: mixer.step(x[:, 0], mixer.initial_state(2))):
        with pytest.raises(ValueError, match="tokens must be given"):
            call(x)
    with pytest.raises(ValueError, match=r"integers of shape \(2, 5\).*got torch.int64 of shape \(2, 4\)"):
        mixer(x, tokens=torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens must be integers .*got torch.float32"):
        mixer(x, tokens=torch.zeros(2, 5))
    state = mixer.initial_state(2)
    with pytest.raises(ValueError, match=r"state\['tokens'\] must be of a integer dtype"):
        mixer.prefill(x, {**state, "tokens": state["tokens"].float()}, tokens=torch.zeros(2, 5).long())
