"""FlexAttention against the definition: every mask that it may be chosen for, options, lengths; refusals."""

import inspect

import pytest
import torch

from gatework import masks
from gatework.masks import (
    BlockCausal,
    BlockCausalDocument,
    BlockSparse,
    Causal,
    CausalBlockwise,
    CausalDocument,
    Document,
    Full,
    GlobalWindow,
    Grid,
    Halo,
    Mask,
    Neighborhood,
    PrefixLM,
    PrefixLMDocument,
    SharedQuestion,
    Slice,
    Slices,
    SlidingWindow,
    Windows,
)
from gatework.ops import attention, attention_reference
from gatework.ops.attention import flex
from gatework.ops.attention.options import Alibi, Options

#: Not a multiple of FlexAttention's blocks of 128, and more than one of them.
LENGTH = 210
FAMILIES = [
    BlockCausal(48),
    BlockCausalDocument((100, 110), 32),
    BlockSparse.from_map(
        torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) > 0.5,
        (64, 50),
        q_length=LENGTH,
        kv_length=LENGTH,
    ),
    Causal(),
    CausalBlockwise((90, 80, 40)),
    CausalDocument((1, 140, 69)),
    Document((1, 140, 69)),
    Full(),
    GlobalWindow(3, 20),
    Grid((10, 21), (5, 7)),
    Halo((14, 15), 4, 1),
    Neighborhood((14, 15), 5, stride=2, dilation=(2, 1), is_causal=(True, False)),
    PrefixLM(31),
    PrefixLMDocument((100, 110), 30),
    SharedQuestion((50, 100, 60)),
    Slices((Slice(0, 100, 0, 64), Slice(100, 210, 50, 200, "causal"))),
    SlidingWindow(60, 3),
    Windows((14, 15), (4, 6), shift=(1, 2)),
]
COMBINED = [
    Causal() & Document((100, 110)),
    ~SlidingWindow(30, 30) | Causal(),
    SlidingWindow(20, 0).with_query_offset(-30),  # the first queries may attend to nothing
]


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def options(**given):
    defaults = {"mask": None, "bias": None, "scale": 0.3, "softcap": None, "sinks": None, "dropout_p": 0.0}
    return Options(**defaults | {"return_lse": False} | given)


def assert_is_the_reference(q, k, v, tolerance=1e-5, **given):
    ours = attention(q, k, v, engine="flex", **given)
    bias = given.get("bias")
    if isinstance(bias, Alibi):
        bias = bias.to_dense(q.shape[2], k.shape[2], q.double())
    wanted, _ = attention_reference(q.double(), k.double(), v.double(), **given | {"bias": bias})
    assert ours.dtype == v.dtype
    torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=tolerance)


def test_every_trusted_mask_is_tried():
    known = {c for c in vars(masks).values() if inspect.isclass(c) and issubclass(c, Mask)}
    assert {type(mask) for mask in FAMILIES} == flex.TRUSTED
    assert known >= flex.TRUSTED


@pytest.mark.compile
def test_one_kernel_of_each_kind():
    q, k, v = randn(2, 4, LENGTH, 5), randn(2, 2, LENGTH, 5), randn(2, 2, LENGTH, 3)
    assert_is_the_reference(
        q, k, v, mask=Document((1, 140, 69)), softcap=2.0, bias=Alibi((0.1, 0.2, 0.3, 0.4), 7)
    )
    allowed = randn(2, 1, LENGTH, LENGTH) > 0.5
    allowed[:, :, 3] = False
    assert_is_the_reference(q, k, v, mask=allowed, bias=randn(4, 1, LENGTH), scale=-0.7)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("mask", FAMILIES + COMBINED, ids=repr)
@pytest.mark.parametrize(
    "given",
    [{}, {"softcap": 2.0, "bias": "tensor", "scale": -0.7}, {"bias": Alibi((0.1, 0.2, 0.3, 0.4), 7)}],
    ids=str,
)
def test_every_mask(mask, given):
    q, k, v = randn(2, 4, LENGTH, 16), randn(2, 2, LENGTH, 16), randn(2, 2, LENGTH, 8)
    if given.get("bias") == "tensor":
        given = given | {"bias": randn(2, 1, LENGTH, LENGTH)}
    assert_is_the_reference(q, k, v, mask=mask, **given)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, Full(), Causal(), SlidingWindow(5, 2).with_query_offset(9)], ids=repr)
@pytest.mark.parametrize("lengths", [(1, 1), (1, 130), (127, 129), (256, 33), (300, 384)], ids=str)
def test_every_length(mask, lengths):
    q, k, v = randn(1, 3, lengths[0], 8), randn(1, 1, lengths[1], 8), randn(1, 1, lengths[1], 8)
    assert_is_the_reference(q, k, v, mask=mask)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", [None, Causal(), Document((1, 140, 69))], ids=repr)
def test_lower_precisions(dtype, mask):
    q, k, v = (randn(2, 2, LENGTH, 32, dtype=dtype) for _ in range(3))
    assert_is_the_reference(q, k, v, tolerance=2e-2, mask=mask)


@pytest.mark.compile
@pytest.mark.slow
def test_masks_that_tell_sequences_and_heads_apart():
    mask = BlockSparse.from_map(randn(2, 4, 7, 7) > 0, 30)
    q, k, v = randn(2, 4, LENGTH, 16), randn(2, 2, LENGTH, 16), randn(2, 2, LENGTH, 16)
    assert_is_the_reference(q, k, v, mask=mask)


@pytest.mark.compile
@pytest.mark.slow
def test_more_kinds_than_pytorch_compiles_of_one_function():
    q, k, v = (randn(1, 1, 20, 8) for _ in range(3))
    for left in range(10):
        assert_is_the_reference(q, k, v, mask=SlidingWindow(left, 0))


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_empty_tensors(lengths):
    q, k, v = randn(2, 2, lengths[0], 4), randn(2, 2, lengths[1], 4), randn(2, 2, lengths[1], 4)
    y, lse = flex.flex(q, k, v, options(mask=Causal()))
    assert torch.equal(y, torch.zeros(2, 2, lengths[0], 4))
    assert lse is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dropout_p": 0.1}, "dropout_p=0.1"),
        ({"return_lse": True}, "return_lse=True"),
        ({"sinks": torch.zeros(2)}, "no sinks on CPU"),
        ({"bias": torch.zeros(6, requires_grad=True)}, "no backward pass on CPU"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_said(given, reason):
    q = randn(1, 2, 6, 4)
    assert reason in flex.refusal(q, q, q, options(**given))


def test_dtypes_and_gradients_it_cannot_do_are_said():
    q = randn(1, 2, 6, 4)
    assert flex.refusal(q, q, q, options()) is None
    assert "float64" in flex.refusal(q.double(), q.double(), q.double(), options())
    assert "one dtype" in flex.refusal(q, q, q.bfloat16(), options())
    learned = q.clone().requires_grad_()
    assert "no_grad" in flex.refusal(q, learned, q, options())
    with torch.no_grad():
        assert flex.refusal(q, learned, q, options()) is None


def test_a_missing_compiler_is_said(monkeypatch):
    q = randn(1, 2, 6, 4)
    flex._missing_on_cpu.cache_clear()
    monkeypatch.setattr(flex.shutil, "which", lambda name: None)
    try:
        assert "C++ compiler" in flex.refusal(q, q, q, options())
    finally:
        flex._missing_on_cpu.cache_clear()


@pytest.mark.bad_input
def test_the_front_door_says_why():
    q = torch.zeros(1, 2, 6, 4, requires_grad=True)
    with pytest.raises(ValueError, match="engine 'flex' has no backward pass on CPU"):
        attention(q, q, q, engine="flex")
