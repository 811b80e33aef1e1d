import math

import pytest
import torch

from gatework import ops
from gatework.masks import Causal, Document, SlidingWindow
from gatework.ops.attention import ENGINES, Alibi, attention


@pytest.mark.parametrize(
    ("mask", "length", "chosen"),
    [
        (SlidingWindow(64, 0), 1024, "blocked"),
        (SlidingWindow(16, 16).with_query_offset(3), 1024, "blocked"),
        (~SlidingWindow(500, 500), 1024, "blocked"),
        (~SlidingWindow(16, 16), 1024, "dense"),
        (SlidingWindow(64, 0), 128, "dense"),
        (SlidingWindow(64, 0), 0, "dense"),
        (Causal(), 256, "dense"),
        (None, 256, "dense"),
    ],
)
def test_automatic_choice(monkeypatch, mask, length, chosen):
    ran = []
    for name, engine in ENGINES.items():
        monkeypatch.setitem(
            ENGINES,
            name,
            engine._replace(run=lambda *args, n=name, run=engine.run: (ran.append(n), run(*args))[1]),
        )
    ops.attention(*(torch.randn(1, 1, length, 2) for _ in range(3)), mask=mask)
    assert ran == [chosen]


def test_ops_holds_the_function_whatever_was_imported_first():
    assert ops.attention is attention


Q, K = torch.zeros(2, 4, 5, 3), torch.zeros(2, 2, 7, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((Q[0], K, K), r"q must be floating point of shape .* got torch.float32 of shape \(4, 5, 3\)"),
        ((Q, K.int(), K), "k must be floating point of shape .* got torch.int32"),
        ((Q, K, K.double()), "v must have the dtype of q, torch.float32, got torch.float64"),
        (
            (Q, K[:1], K),
            r"k must have the batch and the head_dim >= 1 of q, \(2, 4, 5, 3\), got \(1, 2, 7, 3\)",
        ),
        ((Q, K[..., :2], K), r"k must have the batch and the head_dim >= 1 of q, .* got \(2, 2, 7, 2\)"),
        ((Q[..., :0], K[..., :0], K), r"head_dim >= 1 of q, \(2, 4, 5, 0\)"),
        ((Q[:, :3], K, K), "the heads of k must divide those of q, 3, got 2"),
        ((Q, K[:, :0], K[:, :0]), "the heads of k must divide those of q, 4, got 0"),
        ((Q, K, K[:, :, :6]), r"v must have the batch, heads and length of k, \(2, 2, 7\), got \(2, 2, 6\)"),
        ((Q, K, K[:, :1]), r"v must have the batch, heads and length of k, \(2, 2, 7\), got \(2, 1, 7\)"),
    ],
)
def test_wrong_tensors_are_named(tensors, message):
    with pytest.raises(ValueError, match=message):
        ops.attention(*tensors)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mask": torch.ones(5, 7)},
            TypeError,
            "mask must be boolean, True where allowed, got torch.float32",
        ),
        (
            {"mask": "causal"},
            TypeError,
            r"mask must be a gatework.masks.Mask or a boolean tensor, got 'causal'",
        ),
        (
            {"mask": torch.ones(5, 6) > 0},
            ValueError,
            r"mask must broadcast to .*=\(2, 4, 5, 7\), got \(5, 6\)",
        ),
        (
            {"mask": torch.ones(1, 2, 4, 5, 7) > 0},
            ValueError,
            r"mask must broadcast .* got \(1, 2, 4, 5, 7\)",
        ),
        ({"bias": torch.ones(3, 4, 5, 7)}, ValueError, r"bias must broadcast .* got \(3, 4, 5, 7\)"),
        ({"bias": torch.ones(5, 7) > 0}, TypeError, "bias must be floating point, got torch.bool"),
        ({"sinks": torch.ones(2)}, ValueError, r"sinks must have shape \(heads,\)=\(4,\), got \(2,\)"),
        ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
        ({"scale": "2"}, TypeError, "scale must be a number, got '2'"),
        ({"softcap": 0.0}, ValueError, r"softcap must be positive, got 0\.0"),
        ({"softcap": -2.0}, ValueError, r"softcap must be positive, got -2\.0"),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be at least 0 and below 1, got 1\.0"),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p must be at least 0 and below 1, got -0\.1"),
        ({"engine": "fast"}, ValueError, "engine must be one of reference, dense, blocked, .*, got 'fast'"),
        ({"mask": Document([5])}, ValueError, "kv_length must be 5, which the mask .* is made for, got 7"),
        ({"bias": Alibi((0.5, 0.25))}, ValueError, r"bias must have a slope per query head, 4, got Alibi"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        ops.attention(Q, K, K, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        (
            "blocked",
            {"mask": torch.ones(5, 7) > 0},
            r"needs a mask whose structure .* tensor of shape \(5, 7\)",
        ),
        ("blocked-numba", {"dropout_p": 0.5}, "knows no dropout, got dropout_p=0.5"),
        ("blocked-numba", {"bias": torch.zeros(7, requires_grad=True)}, "gives no gradient of a bias"),
    ],
)
def test_an_engine_says_what_it_cannot_do(engine, options, message):
    with pytest.raises(ValueError, match=f"engine '{engine}' {message}"):
        ops.attention(Q, K, K, engine=engine, **options)


@pytest.mark.bad_input
def test_a_kernel_says_that_it_computes_in_float32():
    with pytest.raises(ValueError, match="engine 'blocked-numba' computes in float32, got float64"):
        ops.attention(Q.double(), K.double(), K.double(), engine="blocked-numba")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Alibi(()), ValueError, r"slopes must be finite numbers, one per query head, got \(\)"),
        (lambda: Alibi((math.inf,)), ValueError, "slopes must be finite numbers"),
        (lambda: Alibi((1.0,), 0.5), TypeError, r"query_offset must be an integer, got 0\.5"),
        (lambda: Alibi.for_heads(0), ValueError, "num_heads must be at least 1, got 0"),
    ],
)
def test_mistakes_in_alibi_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
