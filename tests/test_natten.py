"""The dense attention of the namespace that stands in for NATTEN, and what is in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework import natten
from gatework.ops.attention import attention_reference

DOUBLE = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def by_definition(q, k, v, is_causal, scale=None):
    allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    y, lse = attention_reference(q, k, v, mask=allowed.tril() if is_causal else None, scale=scale)
    return y.transpose(1, 2), lse.transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3, 0.0]),
    form=st.sampled_from(["lengths", "edges", "mixed"]),
)
def test_packed_sequences_are_attentions_of_their_own(lengths, is_causal, scale, form):
    q_lengths, kv_lengths = (torch.tensor(side, dtype=torch.int32) for side in zip(*lengths, strict=True))
    q = randn(1, int(q_lengths.sum()), 4, 3)
    k, v = (randn(1, int(kv_lengths.sum()), 2, dim, seed=dim) for dim in (3, 5))
    edges = [torch.nn.functional.pad(side.cumsum(0), (1, 0)).int() for side in (q_lengths, kv_lengths)]
    said = {
        "lengths": {"seqlens_Q": q_lengths, "seqlens_KV": kv_lengths},
        "edges": {"cumulative_seqlen_Q": edges[0], "cumulative_seqlen_KV": edges[1]},
        "mixed": {"seqlens_Q": q_lengths, "cumulative_seqlen_KV": edges[1], "max_seqlen_Q": 5},
    }[form]
    y, lse = natten.attention(q, k, v, is_causal, scale, **said, return_lse=True)
    parts = zip(
        *(t.split(side.tolist(), 1) for t, side in ((q, q_lengths), (k, kv_lengths), (v, kv_lengths))),
        strict=True,
    )
    outputs, lses = zip(*(by_definition(*part, is_causal, scale) for part in parts), strict=True)
    torch.testing.assert_close(y, torch.cat(outputs, 1), rtol=0, atol=1e-11)
    torch.testing.assert_close(lse, torch.cat(lses, 1), rtol=0, atol=1e-11)
    plain = natten.attention(q, k, v, is_causal, scale, **said)
    torch.testing.assert_close(plain, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("is_causal", [False, True])
def test_whole_batches_with_every_argument_by_position(is_causal):
    q, k, v = randn(2, 5, 4, 3), randn(2, 7, 2, 3, seed=1), randn(2, 7, 2, 6, seed=2)
    ignored = (*[None] * 6, "cutlass-fmha", 64, 64, 64, 64, 1, True, False, "non", True)
    y, lse = natten.attention(q, k, v, is_causal, 0.4, *ignored, True)
    wanted = by_definition(q, k, v, is_causal, 0.4)
    torch.testing.assert_close((y, lse), wanted, rtol=0, atol=1e-11)
    leaves = [tensor[:1, :3].clone().requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(lambda q, k, v: natten.attention(q, k, v, is_causal), leaves)


def test_everything_is_there():
    assert sorted(natten.__all__) == natten.__all__
    assert all(callable(getattr(natten, name)) for name in natten.__all__)


Q = torch.zeros(1, 5, 2, 4)
THREE, FIVE = torch.tensor([3]), torch.tensor([2, 3])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "flash"}, "backend must be one of None, c.*ackwell-fmha, flex-fmha, got 'flash'"),
        ({"kernel_schedule": "fast"}, "kernel_schedule must be None or one of non, coop, pp, got 'fast'"),
        ({"seqlens_Q": FIVE}, "must be given together, for as many sequences, got 2 and 1"),
        (
            {"seqlens_Q": THREE, "seqlens_KV": THREE},
            r"seqlens_Q must divide the 5 tokens.*got edges \[0, 3\]",
        ),
        ({"cumulative_seqlen_Q": FIVE}, r"cumulative_seqlen_Q must divide the 5 tokens.*got edges \[2, 3\]"),
        (
            {"seqlens_KV": FIVE, "cumulative_seqlen_KV": FIVE},
            "seqlens_KV and cumulative_seqlen_KV must not both be given",
        ),
        ({"query": Q.expand(2, 5, 2, 4), "seqlens_Q": FIVE}, "must be in a batch of 1, got batch 2"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        natten.attention(**{"query": Q, "key": Q, "value": Q, **options})
