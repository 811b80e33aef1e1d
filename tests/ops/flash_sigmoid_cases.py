"""FlashSigmoid in Triton's interpreter against the definition in float64; run in a process of its own.

The interpreter is chosen when Triton is imported, so `test_flash_sigmoid.py` starts pytest on this file with
TRITON_INTERPRET=1; without it nothing here can run.
"""

import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from gatework import masks
from gatework.masks import BlockSparse, Causal, Document, Mask, Neighborhood, SlidingWindow
from gatework.ops import sigmoid_attention
from gatework.ops.sigmoid_attention import flash
from gatework.ops.sigmoid_attention.flash import kernels, launch
from gatework.ops.sigmoid_attention.flash.launch import Tile, Tiles
from gatework.ops.sigmoid_attention.options import SigmoidOptions
from gatework.ops.sigmoid_attention.reference import sigmoid_attention_reference
from tests.golden.case import Case, relative_error

assert os.environ.get("TRITON_INTERPRET") == "1", "start this file from test_flash_sigmoid.py"

GOLDEN = Path(__file__).parents[1] / "golden" / "sigmoid_attention"
#: Tiles so small that short sequences, which the interpreter can compute in time, have many of them.
SMALL = Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(64, 16, 4, 1))


@pytest.fixture(autouse=True, scope="session")
def _fast_interpreter():
    """Leave out what Triton repeats: it prepares its language for a launch, and again for each call in it."""
    slow = InterpretedFunction.__call__
    prepared = {kernels.__name__}  # a launch does it; for modules of Triton's own the first call in them

    def call(function, *given, **named):
        if function.fn.__module__ in prepared:
            return function.rewrite()(*given, **named)
        prepared.add(function.fn.__module__)
        return slow(function, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(launch, "tiles", lambda *_: SMALL)


def tensors(*shapes: tuple[int, ...], dtype=torch.float32, seed: int = 0) -> list[Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=gen).to(dtype).requires_grad_() for shape in shapes]


def inputs(batch=1, heads=2, kv_heads=1, q_length=33, kv_length=20, dim=16, value_dim=None, **options):
    value_dim = dim if value_dim is None else value_dim
    shapes = (batch, heads, q_length, dim), (batch, kv_heads, kv_length, dim)
    return tensors(*shapes, (batch, kv_heads, kv_length, value_dim), **options)


def asked(mask=None, row_bias=None, pair_bias=None, slopes=None, query_offset=0, scale=0.3) -> SigmoidOptions:
    row_bias = torch.full((1, 1, 1), -1.0) if row_bias is None else row_bias
    return SigmoidOptions(mask, row_bias, pair_bias, slopes, query_offset, scale, 0.0)


def definition(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    bias = options.row_bias[..., None].to(q.dtype)
    if options.pair_bias is not None:
        bias = bias + options.pair_bias.to(q.dtype)
    return sigmoid_attention_reference(
        q,
        k,
        v,
        bias,
        mask=options.mask,
        alibi_slopes=None if options.slopes is None else options.slopes.to(q.dtype),
        query_offset=options.query_offset,
        scale=options.scale,
    )


def check(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> None:
    """Outputs and all gradients must be the definition's, which is computed in float64.

    Errors are measured against the largest number of a tensor: sums of products are rounded on the scale of
    their terms. In half precisions weights and their gradients are rounded before they are multiplied, and
    results once more; the interpreter cuts bfloat16 off where a GPU rounds, which is twice as coarse.
    """
    reason = flash.refusal(q, k, v, options)
    assert reason is None, reason
    of = [q, k, v, *([options.row_bias] if options.row_bias.requires_grad else [])]
    exact = [part.detach().double().requires_grad_() for part in of]
    exact_options = options._replace(row_bias=exact[3] if len(exact) > 3 else options.row_bias)
    y, expected = flash.flash(q, k, v, options), definition(*exact[:3], exact_options)
    (cotangent,) = tensors(tuple(y.shape), dtype=y.dtype, seed=7)
    cotangent = cotangent.detach()
    grads = torch.autograd.grad(y, of, cotangent)
    expected_grads = torch.autograd.grad(expected, exact, cotangent.double())
    assert y.dtype == v.dtype
    tolerance = 3 * torch.finfo(q.dtype).eps if q.dtype != torch.float32 else 1e-5
    for ours, theirs in zip((y, *grads), (expected, *expected_grads), strict=True):
        assert ours.shape == theirs.shape
        limit = tolerance * max(1.0, theirs.abs().max().item() if theirs.numel() else 0.0)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=limit)


# --- the tiles that calls on a GPU have ---


@pytest.mark.parametrize("dim", [24, 32, 64, 96, 128])
def test_heads_of_every_size(dim):
    check(*inputs(heads=1, q_length=65, kv_length=63, dim=dim), asked(Causal()))


@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.bfloat16), (96, torch.float16)], ids=str)
def test_half_precisions(dim, dtype):
    check(*inputs(heads=1, q_length=130, kv_length=65, dim=dim, dtype=dtype), asked(Causal()))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [24, 32, 64, 96, 128])
def test_half_precisions_of_every_size(dim, dtype):
    q, k, v = inputs(q_length=130, kv_length=150, dim=dim, dtype=dtype)
    check(q, k, v, asked(Causal(), scale=dim**-0.5, slopes=torch.rand(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (64, 24), (16, 128), (200, 256), (256, 1)])
def test_heads_of_two_sizes(dim, value_dim, dtype):
    q, k, v = inputs(q_length=130, kv_length=65, dim=dim, value_dim=value_dim, dtype=dtype)
    check(q, k, v, asked(SlidingWindow(40, 20), scale=dim**-0.5))


LENGTHS = [1, 17, 63, 65, 130]


@pytest.mark.parametrize(("q_length", "kv_length"), [(1, 130), (17, 1), (63, 17), (65, 65), (130, 63)])
def test_lengths(q_length, kv_length):
    mask = Causal().with_query_offset(kv_length - q_length)
    check(*inputs(heads=1, q_length=q_length, kv_length=kv_length), asked(mask))
    check(*inputs(heads=1, q_length=q_length, kv_length=kv_length), asked())


@pytest.mark.slow
@pytest.mark.parametrize("q_length", LENGTHS)
@pytest.mark.parametrize("kv_length", LENGTHS)
def test_every_pair_of_lengths(q_length, kv_length):
    q, k, v = inputs(2, 4, 2, q_length, kv_length, 32)
    slopes = torch.rand(2, 4)
    check(q, k, v, asked(Causal().with_query_offset(kv_length - q_length), slopes=slopes, query_offset=3))


# --- many tiles ---


def block_map(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5


MASKS: list[Mask] = [
    Causal().with_query_offset(9),
    SlidingWindow(7, 2),
    Document((20, 1, 43)),
    masks.CausalDocument((20, 44)),
    Neighborhood((8, 8), 3, dilation=2),
    masks.Windows((8, 8), (4, 2), shift=(1, 0)),
    BlockSparse.from_map(block_map(2, 2, 4, 4), (16, 16), q_length=64, kv_length=64),
    ~SlidingWindow(31, 31),
    Causal() & Document((30, 34)),
    masks.PrefixLM(10),
]


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_masks(mask, small_tiles):
    batch = mask.batch_size or 1
    q, k, v = inputs(batch, 2, 1, 64, 64)
    check(q, k, v, asked(mask, row_bias=torch.zeros(1, 1, 64).requires_grad_()))


def test_rows_of_nothing_are_zero(small_tiles):
    mask = Causal().with_query_offset(-40)
    q, k, v = inputs(q_length=64, kv_length=64)
    options = asked(mask)
    check(q, k, v, options)
    y = flash.flash(q, k, v, options)
    (dq,) = torch.autograd.grad(y.sum(), q)
    assert not y[:, :, :40].any()
    assert not dq[:, :, :40].any()
    assert y[:, :, 40:].any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (2, 1, 33), (2, 2, 33)])
def test_biases_of_rows(shape, small_tiles):
    (row_bias,) = tensors(shape, seed=3)
    check(*inputs(2), asked(Causal(), row_bias=row_bias))


@pytest.mark.parametrize("shape", [(1, 1, 1, 20), (1, 2, 33, 20), (2, 1, 33, 20)])
def test_biases_of_pairs(shape, small_tiles):
    pair_bias = tensors(shape, seed=3)[0].detach()
    (row_bias,) = tensors((1, 2, 1), seed=4)
    check(*inputs(2), asked(SlidingWindow(9, 9), pair_bias=pair_bias, row_bias=row_bias))


def test_a_bias_of_pairs_of_any_layout(small_tiles):
    pair_bias = torch.randn(1, 2, 20, 33, dtype=torch.float64).mT
    check(*inputs(), asked(pair_bias=pair_bias))


@pytest.mark.parametrize(
    ("batch", "query_offset", "dtype"), [(1, 0, None), (1, -50, None), (2, 7, torch.float64)]
)
def test_alibi(batch, query_offset, dtype, small_tiles):
    slopes = torch.rand(batch, 2, dtype=dtype)
    check(*inputs(2), asked(slopes=slopes, query_offset=query_offset))


@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
def test_scales(scale, small_tiles):
    check(*inputs(), asked(Causal(), scale=scale))


def test_any_layout(small_tiles):
    # As projections leave them, (batch, length, heads, dim); with channels apart; and expanded.
    q, k, v = inputs(2, q_length=20)
    strided = [part.detach().transpose(1, 2).contiguous().transpose(1, 2) for part in (q, k, v)]
    apart = [part.detach().mT.contiguous().mT for part in (q, k, v)]
    every_second = [torch.stack([part.detach()] * 2, -1).flatten(-2)[..., ::2] for part in (q, k, v)]
    for layout in (strided, apart, every_second):
        check(*(part.requires_grad_() for part in layout), asked(Causal()))
    expanded = torch.randn(2, 1, 1, 16).expand(2, 1, 20, 16)
    check(q, expanded.requires_grad_(), expanded.detach().requires_grad_(), asked(Causal()))


def test_an_expanded_cotangent(small_tiles):
    q, k, v = inputs()
    options = asked(Causal())
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    grads = torch.autograd.grad(flash.flash(q, k, v, options).sum(), (q, k, v))
    expected = torch.autograd.grad(definition(*exact, options).sum(), exact)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "sizes", [(0, 2, 1, 5, 7), (1, 2, 1, 0, 7), (1, 2, 1, 5, 0), (0, 2, 1, 0, 0)], ids=str
)
@pytest.mark.parametrize("mask", [None, Causal()], ids=str)
def test_nothing_at_all(sizes, mask):
    check(*inputs(*sizes), asked(mask, row_bias=torch.zeros(1, 2, 1).requires_grad_()))


def test_both_ends_of_the_sigmoid_are_accurate(small_tiles):
    q, k, v = inputs()
    v = v.detach().abs()
    for bias in (-80.0, -30.0, 30.0):
        options = asked(row_bias=torch.full((1, 1, 1), bias, requires_grad=True))
        y, expected = flash.flash(q, k, v, options), definition(q.double(), k.double(), v.double(), options)
        torch.testing.assert_close(y.double(), expected, rtol=2e-5, atol=0)
        grads = (torch.autograd.grad(x.sum(), options.row_bias)[0] for x in (y, expected))
        torch.testing.assert_close(*grads, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_huge_scores_are_finite(dtype, small_tiles):
    q, k, v = inputs(dtype=dtype)
    options = asked(Causal(), scale=1e4, row_bias=torch.zeros(1, 1, 1, requires_grad=True))
    y = flash.flash(q, k, v, options)
    for part in (y, *torch.autograd.grad(y.sum(), (q, k, v, options.row_bias))):
        assert part.isfinite().all()


def test_only_asked_for_gradients(small_tiles):
    q, k, v = inputs()
    options = asked(Causal())
    y = flash.flash(q.detach(), k, v.detach(), options)
    (dk,) = torch.autograd.grad(y.sum(), k)
    exact = k.detach().double().requires_grad_()
    expected = definition(q.detach().double(), exact, v.detach().double(), options)
    torch.testing.assert_close(dk.double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=0, atol=1e-5)


def test_lists_of_inference_serve_training(small_tiles):
    mask = SlidingWindow(5, 4)
    q, k, v = inputs()
    with torch.inference_mode():
        flash.flash(q, k, v, asked(mask))
    check(q, k, v, asked(mask))


def test_autocast(small_tiles):
    q, k, v = inputs()
    options = asked(Causal())
    with torch.autocast("cpu", torch.bfloat16):
        assert flash.refusal(q.double(), k, v, options) is None
        y = flash.flash(q.double(), k, v, options)
    halves = [part.to(torch.bfloat16) for part in (q, k, v)]
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, flash.flash(*halves, options))


@pytest.mark.compile
def test_whole_graphs(small_tiles):
    def loss(q, k, v, row_bias):
        return flash.flash(q, k, v, asked(mask, row_bias=row_bias)).square().sum()

    mask = SlidingWindow(6, 3)
    leaves = [*inputs(), *tensors((1, 2, 1))]
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for ours, theirs in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("mask", [None, Causal()], ids=str)
def test_the_operators_are_proper_ones(mask, small_tiles):
    q, k, v = inputs(q_length=9, kv_length=20)
    lists = flash._lists(mask, q, k, SMALL.forward, "queries")
    key_lists = flash._lists(mask, q, k, SMALL.backward_keys, "keys")
    slopes = torch.rand(1, 2)
    rest = (torch.zeros(1, 2, 1, requires_grad=True), None, slopes, lists, key_lists, 2, 0.5)
    torch.library.opcheck(flash._forward_op, (q, k, v, *rest))
    tensors = [part.detach() for part in (q, q, k, v, rest[0])]
    for test in ("test_schema", "test_faketensor"):
        torch.library.opcheck(flash._backward_op, (*tensors, *rest[1:], True), test_utils=test)


def test_through_the_front_door(small_tiles):
    q, k, v = inputs(2, kv_length=37)
    options = {"bias": -2.0, "is_causal": True, "alibi_slopes": torch.rand(2)}
    ours, theirs = (sigmoid_attention(q, k, v, engine=e, **options) for e in ("triton", "reference"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    grads = (torch.autograd.grad(y.sum(), (q, k, v)) for y in (ours, theirs))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-5)


def test_golden():
    case = Case(GOLDEN / "flash_sigmoid_causal_gqa_alibi.safetensors", torch.float32)
    q, k, v = (case.inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    offset = k.shape[2] - q.shape[2]
    bias = torch.full((1, 1, 1), case.kwargs["sigmoid_bias"])
    slopes, scale = case.inputs["alibi_slopes"].detach(), case.kwargs["softmax_scale"]
    mask = Causal().with_query_offset(offset)
    out = flash.flash(q, k, v, SigmoidOptions(mask, bias, None, slopes, offset, scale, 0.0)).transpose(1, 2)
    assert relative_error(out, case.tensors["out/out"]) < 1e-5
    case.backward({"out": out})
    for name in ("q", "k", "v"):
        assert relative_error(*case.gradient(name)) < 1e-5


# --- anything ---


def any_mask(kind: int, q_length: int, kv_length: int, batch: int, heads: int) -> Mask | None:
    cut = max(1, kv_length // 3)
    if kind == 5:
        table = block_map(batch, heads, -(-q_length // 8), -(-kv_length // 8))
        return BlockSparse.from_map(table, (8, 8), q_length=q_length, kv_length=kv_length)
    return (
        None,
        Causal().with_query_offset(kv_length - q_length),
        SlidingWindow(cut, 3),
        ~SlidingWindow(cut, cut),
        masks.PrefixLM(cut) | SlidingWindow(2, 5),
    )[kind]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_anything(data):
    groups, kv_heads, batch = (data.draw(st.integers(1, 2)) for _ in range(3))
    q_length, kv_length = (data.draw(st.integers(1, 70)) for _ in range(2))
    dim, value_dim = (data.draw(st.sampled_from([1, 5, 16, 31, 64])) for _ in range(2))
    heads = groups * kv_heads
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    seed = data.draw(st.integers(0, 999))
    size = batch, heads, kv_heads, q_length, kv_length, dim, value_dim
    part = st.sampled_from([1, 2]).map(lambda n: n == 1)
    shape = [n if data.draw(part) else 1 for n in (batch, heads, q_length)]
    (row_bias,) = tensors(tuple(shape), seed=seed)
    pair_bias = torch.randn(1, heads, 1, kv_length) if data.draw(part) else None
    slopes = torch.rand(1, heads) if data.draw(part) else None
    mask = any_mask(data.draw(st.integers(0, 5)), q_length, kv_length, batch, heads)
    offset, scale = data.draw(st.integers(-9, 99)), data.draw(st.floats(-1, 1)) / math.sqrt(dim)
    options = SigmoidOptions(mask, row_bias, pair_bias, slopes, offset, scale, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "tiles", lambda *_: SMALL)
        check(*inputs(*size, dtype=dtype, seed=seed), options)
