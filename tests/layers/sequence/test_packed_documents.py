"""Packed documents are mixed as each would be alone, whatever lies beside them, by every registered mixer."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gatework
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence import attention, packed_documents
from gatework.layers.sequence.attention import _rotated_at
from gatework.layers.sequence.packed_documents import PackedDocuments, _cuts
from gatework.ops.attention import kernels
from tests.layers.sequence.streaming import TOLERANCE
from tests.layers.sequence.test_every_mixer import DIM, every_case, make

#: Documents of one to ten tokens, one number that returns, padding at an end, in between and in a whole row.
SEQ_IDX = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 1, 1, 2, 2],
        [3, 4, 4, 4, 4, 4, 4, -1, -1, -1],
        [5] * 10,
        [-1] * 10,
        [7, 7, 8, 8, 8, 7, -1, 9, 9, 9],
    ]
)


def alone(mixer, x, documents, tokens=None):
    """The definition: every document in a batch of its own."""
    flat, y = x.flatten(0, 1), torch.zeros(x.shape[0] * x.shape[1], x.shape[2], dtype=x.dtype)
    for start, length in zip(documents.starts, documents.lengths, strict=True):
        told = {"tokens": tokens.flatten()[None, start : start + length]} if mixer.reads_tokens else {}
        y = y.index_put(
            (torch.arange(start, start + length),), mixer(flat[None, start : start + length], **told)[0]
        )
    return y.view_as(x)


def check(mixer, x, documents, tokens=None, **tolerance):
    """Values and all gradients equal those of the definition."""
    cotangent = torch.randn_like(x)
    found = mixer.forward_documents(x, documents, tokens=tokens)
    expected = alone(mixer, x, documents, tokens)
    torch.testing.assert_close(found, expected, **tolerance)
    inputs = [x, *mixer.parameters()]
    gradients = (torch.autograd.grad(y, inputs, cotangent, allow_unused=True) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **tolerance)


@every_case
def test_every_document_is_mixed_as_if_alone(name, options, monkeypatch):
    monkeypatch.setattr(packed_documents, "_GROUP_COST", 1)
    documents = PackedDocuments.from_seq_idx(SEQ_IDX)
    assert len(documents.group(SEQ_IDX)) > 3
    x = torch.randn(*SEQ_IDX.shape, DIM, dtype=torch.float64)
    x[SEQ_IDX < 0] = float("nan")  # padding reaches nothing
    check(make(name, options), x.requires_grad_(), documents, torch.randint(3, SEQ_IDX.shape), **TOLERANCE)


@pytest.mark.skipif(not kernels.is_available(), reason="needs numba")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention", {"num_heads": 4, "num_kv_heads": 2, "rope": True}),
        ("attention", {}),
        ("sliding_window", {"window_size": 40, "rope": True}),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_attention_under_one_mask(name, options, padded, monkeypatch):
    """In float32, whose rounding the two ways to sum share out differently: 1e-5 of sums of 300 terms."""
    monkeypatch.setattr(packed_documents, "_GROUP_COST", None)  # no groups are made
    documents = PackedDocuments.from_seq_idx(
        torch.tensor([[0] * 300 + [1] * 211 + [-1 if padded else 1], [2] * 512])
    )
    x = torch.randn(2, 512, DIM, requires_grad=True)
    check(make(name, options, torch.float32), x, documents, rtol=1e-4, atol=1e-4)


def test_short_documents_and_dropout_are_read_in_groups(monkeypatch):
    mixer = gatework.create_mixer("attention", DIM, dropout=0.5)
    x = torch.randn(1, 600, DIM)
    monkeypatch.setattr(attention.kernels, "is_available", lambda: True)
    short, long = (PackedDocuments.from_seq_idx(torch.arange(600)[None] // length) for length in (100, 300))
    assert not mixer.eval()._masks_documents(x, short)
    assert mixer._masks_documents(x, long)
    assert not mixer.train()._masks_documents(x, long)
    assert not gatework.create_mixer("big_bird", DIM).eval()._masks_documents(x, long)


def test_positions_are_counted_from_where_a_document_begins():
    x = torch.randn(1, 2, 9, 6)
    at = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1, 2])
    parts = [rotary_embedding(part, theta=100.0) for part in x.split([4, 2, 3], 2)]
    torch.testing.assert_close(_rotated_at(x, at, 100.0), torch.cat(parts, 2), rtol=0, atol=0)


def test_auxiliary_losses_are_those_of_the_documents():
    """The mean over documents, by tokens."""
    mixer = make("sigmoid_lookups", {"penalty": 3.0, "num_lookups": 1}).train()
    documents = PackedDocuments.from_seq_idx(SEQ_IDX)
    x = torch.randn(*SEQ_IDX.shape, DIM, dtype=torch.float64)
    flat = x.flatten(0, 1)
    expected = sum(
        length / documents.num_tokens * mixer.auxiliary_loss(flat[None, start : start + length])
        for start, length in zip(documents.starts, documents.lengths, strict=True)
    )
    assert expected > 0
    torch.testing.assert_close(mixer.auxiliary_loss_of_documents(x, documents), expected)
    assert mixer.eval().auxiliary_loss_of_documents(x, documents) is None
    assert make("attention", {}).auxiliary_loss_of_documents(x, documents) is None


rows_of_numbers = st.integers(0, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(-1, 2), min_size=length, max_size=length), min_size=0, max_size=4
    ).map(lambda rows: torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length))
)


@settings(max_examples=60, deadline=None)
@given(seq_idx=rows_of_numbers, cost=st.sampled_from([0, 1, 5, 1000]))
def test_documents_are_stretches_of_one_number(seq_idx, cost):
    documents = PackedDocuments.from_seq_idx(seq_idx)
    found, at = [], 0
    positions = torch.zeros_like(seq_idx)
    for row, numbers in enumerate(seq_idx.tolist()):
        column = 0
        for number, stretch in itertools.groupby(numbers):
            length = len(list(stretch))
            if number >= 0:
                found.append((at + column, length))
                positions[row, column : column + length] = torch.arange(length)
            column += length
        at += column
    assert list(zip(documents.starts, documents.lengths, strict=True)) == found
    assert torch.equal(documents.positions, positions)

    x = torch.randn(*seq_idx.shape, 2, dtype=torch.float64)
    zeroed = x * (seq_idx >= 0)[..., None]
    stream = documents.concatenate(x)
    assert torch.equal(stream[0], x[seq_idx >= 0])
    assert torch.equal(documents.concatenated_positions, positions[seq_idx >= 0])
    assert torch.equal(documents.split_to_rows(stream), zeroed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_documents, "_GROUP_COST", cost)
        parts = documents.group(x)
    assert torch.equal(documents.ungroup(parts), zeroed)
    flat, rest = x.flatten(0, 1), sorted(found, key=lambda document: document[1])
    for part in parts:
        for row in part:
            if documents.are_whole_rows:
                continue
            start, length = rest.pop(0)
            assert torch.equal(row[:length], flat[start : start + length])
            assert not row[length:].any()
    assert documents.are_whole_rows or not rest


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=7), cost=st.integers(0, 30))
def test_groups_are_those_that_cost_least(lengths, cost):
    lengths = torch.tensor(sorted(lengths)).numpy()

    def total(cuts):
        groups = zip((0, *cuts), (*cuts, len(lengths)), strict=True)
        return sum((stop - start) * lengths[stop - 1] + cost for start, stop in groups)

    every = itertools.chain.from_iterable(
        itertools.combinations(range(1, len(lengths)), count) for count in range(len(lengths))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_documents, "_GROUP_COST", cost)
        assert total(_cuts(lengths)) == min(map(total, every))


def test_many_lengths_pad_little():
    lengths = torch.arange(1, 3000).numpy()
    cuts = _cuts(lengths)
    ends = [*cuts, len(lengths)]
    padded = sum((stop - start) * lengths[stop - 1] for start, stop in zip([0, *cuts], ends, strict=True))
    assert padded < 1.05 * lengths.sum()


def test_gradients_of_rearrangement():
    documents = PackedDocuments.from_seq_idx(SEQ_IDX)
    x = torch.randn(*SEQ_IDX.shape, 1, dtype=torch.float64, requires_grad=True)

    def squares(x):
        apart = documents.ungroup([part**3 for part in documents.group(x)])
        return apart + documents.split_to_rows(documents.concatenate(x) ** 2)

    assert torch.autograd.gradcheck(squares, x)
    assert torch.autograd.gradgradcheck(squares, x)


@pytest.mark.bad_input
def test_wrong_numbers_are_named():
    with pytest.raises(TypeError, match=r"seq_idx must hold the integer .* got torch.float32"):
        PackedDocuments.from_seq_idx(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"shape \(rows, length\), got \(3,\)"):
        PackedDocuments.from_seq_idx(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 0, or -1 at padding, got -100"):
        PackedDocuments.from_seq_idx(torch.tensor([[0, -100]]))


def test_selection_that_looks_ahead_is_refused():
    mixer = gatework.create_mixer("sigmoid_lookups", DIM, compat="official").eval()
    x = torch.randn(*SEQ_IDX.shape, DIM)
    with pytest.raises(ValueError, match="looks ahead: the mixer cannot read packed documents"):
        mixer.forward_documents(x, PackedDocuments.from_seq_idx(SEQ_IDX))
    whole = PackedDocuments.from_seq_idx(torch.zeros_like(SEQ_IDX))
    torch.testing.assert_close(mixer.forward_documents(x, whole), mixer(x))
    mixer.train().forward_documents(x, PackedDocuments.from_seq_idx(SEQ_IDX))
