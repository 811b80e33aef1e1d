"""The front door of sigmoid attention: what a wrong call is told."""

import math

import pytest
import torch

from gatework import ops
from gatework.masks import Document
from gatework.ops.attention import kernels

_Q = torch.zeros(2, 4, 5, 8)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(5, 8)}, ValueError, r"q must be floating point of shape.*got.*\(5, 8\)"),
        ({"k": torch.zeros(2, 3, 5, 8)}, ValueError, "heads of k must divide those of q, 4, got 3"),
        ({"v": torch.zeros(2, 4, 6, 8)}, ValueError, r"v must have the batch, heads and length of k"),
        ({"bias": "low"}, TypeError, "bias must be a number, got 'low'"),
        ({"bias": math.inf}, ValueError, "bias must be finite, got inf"),
        ({"bias": torch.ones(4, 1, 1).int()}, TypeError, "bias must be floating point, got torch.int32"),
        (
            {"bias": torch.ones(3, 1, 1)},
            ValueError,
            r"bias must broadcast to .*\(2, 4, 5, 5\), got \(3, 1, 1\)",
        ),
        (
            {"mask": torch.ones(5, 5)},
            TypeError,
            "mask must be boolean, True where allowed, got torch.float32",
        ),
        ({"mask": "causal"}, TypeError, "mask must be a gatework.masks.Mask or a boolean tensor"),
        ({"mask": Document([3, 3])}, ValueError, "q_length must be 6, .*, got 5"),
        ({"alibi_slopes": [1.0] * 4}, TypeError, "alibi_slopes must be a floating point tensor"),
        (
            {"alibi_slopes": torch.ones(3)},
            ValueError,
            r"alibi_slopes must have shape \(heads=4,\) or .*\(3,\)",
        ),
        ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
        ({"query_offset": 1.5}, TypeError, r"query_offset must be an integer, got 1\.5"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p must be at least 0 and below 1, got 1.0"),
        ({"engine": "flash"}, ValueError, "engine must be one of reference, dense, blocked,.* got 'flash'"),
        (
            {"engine": "blocked", "mask": torch.ones(5, 5, dtype=torch.bool)},
            ValueError,
            "engine 'blocked' needs a mask whose structure it knows",
        ),
        (
            {"engine": "blocked", "alibi_slopes": torch.ones(4, requires_grad=True)},
            ValueError,
            "engine 'blocked' gives no gradient of alibi_slopes",
        ),
        ({"engine": "triton"}, ValueError, "engine 'triton' .*CUDA"),
    ],
)
def test_a_wrong_call_is_named(change, error, message):
    arguments = {"q": _Q, "k": _Q, "v": _Q} | change
    with pytest.raises(error, match=message):
        ops.sigmoid_attention(**arguments)


@pytest.mark.bad_input
@pytest.mark.skipif(not kernels.is_available(), reason="numba is not installed")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_p": 0.5}, "knows no dropout, got dropout_p=0.5"),
        ({"bias": torch.ones(5, 5, requires_grad=True)}, "gives no gradient of a bias that differs from key"),
        ({"q": _Q.double(), "k": _Q.double(), "v": _Q.double()}, "computes in float32, got float64"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(change, message):
    with pytest.raises(ValueError, match=f"engine 'blocked-numba' {message}"):
        ops.sigmoid_attention(**({"q": _Q, "k": _Q, "v": _Q, "engine": "blocked-numba"} | change))
