import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.masks import Halo
from gatework.ops import attention
from gatework.ops.vision import halo
from gatework.ops.vision.halo import halo_attention, halo_attention_reference
from gatework.ops.vision.halo_blocks import _SCORES_IN_FLIGHT, halo_blocks
from gatework.ops.vision.window import window_attention

DOUBLE = torch.float64


def randn(*shape, dtype=DOUBLE):
    return torch.randn(shape, dtype=DOUBLE).to(dtype)


def pair(size):
    return (size, size) if isinstance(size, int) else size


def maps(batch, heads, height, width, stride=1, head_dim=3, value_dim=2):
    q = randn(batch, heads, -(-height // stride), -(-width // stride), head_dim)
    k, v = randn(batch, heads, height, width, head_dim), randn(batch, heads, height, width, value_dim)
    return [x.requires_grad_() for x in (q, k, v)]


def tables(block, halos, head_dim=3):
    return [randn(2 * (b + 2 * h) - 1, head_dim).requires_grad_() for b, h in zip(block, halos, strict=True)]


@st.composite
def calls(draw):
    stride = draw(st.sampled_from([1, 1, 2, 3]))
    block = tuple(stride * draw(st.integers(1, 5 // stride)) for _ in range(2))
    halos = draw(st.one_of(st.integers(0, 4), st.tuples(st.integers(0, 4), st.integers(0, 4))))
    inputs = maps(
        draw(st.integers(0, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(0, 12)),
        draw(st.integers(0, 12)),
        stride,
    )
    both = tables(block, pair(halos))
    rel = {
        name: table
        for name, table in zip(("rel_height", "rel_width"), both, strict=True)
        if draw(st.booleans())
    }
    options = {
        "block_size": block,
        "halo_size": halos,
        "stride": stride,
        "scale": draw(st.sampled_from([None, 0.0, -0.7])),
        "scale_pos_embed": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "mask"])),
    }
    return inputs, rel, options


def outputs_and_gradients(function, inputs, rel, options):
    y = function(*inputs, **rel, **options)
    leaves = [*inputs, *rel.values()]
    gen = torch.Generator().manual_seed(1)
    total = (y * torch.randn(y.shape, generator=gen, dtype=DOUBLE)).sum()
    if not y.numel():
        return [y]
    return [y, *torch.autograd.grad(total, leaves)]


@settings(max_examples=150, deadline=None)
@given(call=calls(), mostly_padding=st.sampled_from([0.0, 0.5, 2.0]))
def test_fast_path_is_the_definition(call, mostly_padding):
    theirs = outputs_and_gradients(halo_attention_reference, *call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(halo, "_MOSTLY_PADDING", mostly_padding)  # padding computed, or summed up
        ours = outputs_and_gradients(halo_attention, *call)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)  # float64, sums in another order


@pytest.mark.parametrize("room", [1, 3000, 2**30])
def test_any_number_of_blocks_at_once(room, monkeypatch):
    monkeypatch.setitem(_SCORES_IN_FLIGHT, "cpu", room)
    call = maps(3, 2, 13, 18), dict(zip(("rel_height", "rel_width"), tables((4, 4), (2, 2)), strict=True))
    options = {"block_size": 4, "halo_size": 2}
    theirs = outputs_and_gradients(halo_attention_reference, *call, options)
    for a, b in zip(outputs_and_gradients(halo_attention, *call, options), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padding_mode", ["zeros", "mask"])
@pytest.mark.parametrize("size", [(3, 3), (5, 4)])
def test_gradients(padding_mode, size):
    inputs = [*maps(1, 2, *size), *tables((3, 3), (1, 1))]

    def call(q, k, v, height, width):
        return halo_attention(
            q,
            k,
            v,
            block_size=3,
            halo_size=1,
            rel_height=height,
            rel_width=width,
            padding_mode=padding_mode,
        )

    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_padding_it_is_its_mask(stride):
    q, k, v = maps(2, 2, 9, 10, stride)
    ours = halo_attention(q, k, v, block_size=4, halo_size=1, stride=stride, padding_mode="mask")
    mask = Halo((9, 10), 4, 1, query_stride=stride)
    theirs = attention(*(x.flatten(2, 3) for x in (q, k, v)), mask=mask, engine="reference")
    torch.testing.assert_close(ours.flatten(2, 3), theirs)


def test_without_halo_it_is_attention_in_windows():
    q, k, v = maps(2, 2, 8, 12)
    height, width = tables((4, 4), (0, 0))
    ours = halo_attention(q, k, v, block_size=4, halo_size=0, rel_height=height, rel_width=width)
    alone = [
        halo_attention(
            *(x[:, :, y : y + 4, z : z + 4] for x in (q, k, v)),
            block_size=4,
            halo_size=0,
            rel_height=height,
            rel_width=width,
        )
        for y in (0, 4)
        for z in (0, 4, 8)
    ]
    rows = [torch.cat(alone[:3], 3), torch.cat(alone[3:], 3)]
    torch.testing.assert_close(ours, torch.cat(rows, 2))
    plain = halo_attention(q, k, v, block_size=4, halo_size=0)
    torch.testing.assert_close(plain, window_attention(q, k, v, window_size=4))


def test_padding_modes_differ_in_border_blocks_only():
    q, k, v = maps(1, 2, 16, 16)
    zeros, mask = (
        halo_attention(q, k, v, block_size=4, halo_size=2, padding_mode=mode) for mode in ("zeros", "mask")
    )
    inner = (..., slice(4, 12), slice(4, 12), slice(None))
    torch.testing.assert_close(zeros[inner], mask[inner])
    differs = (zeros - mask).abs().amax((0, 1, 4)) > 1e-6
    differs[4:12, 4:12] = True
    assert differs.all()


def test_offsets_that_no_query_has_get_no_gradient():
    q, k, v = maps(2, 2, 8, 8)
    for table in tables((4, 4), (2, 2)):
        y = halo_attention(q, k, v, block_size=4, halo_size=2, rel_height=table, rel_width=table)
        (grad,) = torch.autograd.grad(y.square().sum(), table)
        assert (grad[:4] == 0).all()  # a query's keys begin at -(block - 1) - halo, row 2 * halo
        assert (grad[4:] != 0).any(1).all()


def test_extreme_logits_stay_finite():
    q, k, v = (x.detach().float() * 100 for x in maps(1, 1, 5, 5))
    table = randn(15, 3).float() * 100
    for mode in ("zeros", "mask"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        options = {"block_size": 4, "halo_size": 2, "rel_height": table, "padding_mode": mode}
        y = halo_attention(*inputs, **options)
        wanted = halo_attention_reference(
            q.double(), k.double(), v.double(), **options | {"rel_height": table.double()}
        )
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1)
        y.sum().backward()
        assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_lower_precisions_are_computed_in_float32(dtype):
    q, k, v = (x.detach().to(dtype) for x in maps(2, 2, 9, 7))
    table = randn(15, 3).to(dtype)
    options = {"block_size": 4, "halo_size": 2, "rel_height": table, "rel_width": table}
    with torch.autocast("cpu", torch.bfloat16):
        y = halo_attention(q, k, v, **options)
    assert y.dtype == dtype
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    wanted = halo_attention_reference(q.double(), k.double(), v.double(), **wide)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=tolerance)


def test_layout_in_memory_does_not_matter():
    strided = [
        x.detach().permute(2, 3, 0, 4, 1).contiguous().permute(2, 4, 0, 1, 3) for x in maps(2, 2, 6, 5)
    ]
    whole = [x.contiguous() for x in strided]
    results = [halo_attention(*x, block_size=4, halo_size=1) for x in (strided, whole)]
    torch.testing.assert_close(*results)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("padded", [True, False])
def test_the_operator_is_a_proper_one(padded):
    q, k, v = maps(1, 2, 4, 5)
    down, across = randn(1, 2, 4, 5, 6).requires_grad_(), randn(1, 2, 4, 5, 6).requires_grad_()
    padding = randn(1, 2, 4, 5).requires_grad_() if padded else None
    arguments = (q, k, v, down, across if padded else None, padding, 0.5, [4, 4, 6, -1, 4, 4, 6, -1])
    torch.library.opcheck(halo_blocks, arguments)


@pytest.mark.compile
def test_compiles_without_a_break():
    inputs = maps(1, 2, 6, 5)
    rel = dict(zip(("rel_height", "rel_width"), tables((4, 4), (1, 1)), strict=True))
    options = {"block_size": 4, "halo_size": 1}
    torch.compiler.reset()
    compiled = torch.compile(halo_attention, fullgraph=True, backend="aot_eager")
    theirs = outputs_and_gradients(halo_attention, inputs, rel, options)
    for a, b in zip(outputs_and_gradients(compiled, inputs, rel, options), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
        ({"block_size": 4.0}, TypeError, r"block_size must be an integer, got 4\.0"),
        ({"halo_size": (1, -1)}, ValueError, r"halo_size\[1\] must be at least 0, got -1"),
        ({"stride": 3}, ValueError, "stride must divide block_size=4, got 3"),
        ({"stride": 2}, ValueError, r"q must have shape \(1, 2, 4, 4, 3\)"),
        (
            {"rel_width": torch.zeros(10, 3)},
            ValueError,
            r"rel_width must have shape .*\(11, 3\), got \(10, 3\)",
        ),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode must be one of zeros, mask, got 'reflect'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(given, error, message):
    with pytest.raises(error, match=message):
        halo_attention(*maps(1, 2, 8, 8), **{"block_size": 4, "halo_size": 1} | given)


@pytest.mark.bad_input
def test_wrong_tensors_are_named():
    q, k, v = maps(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"k must have shape .*got \(2, 8, 8, 3\)"):
        halo_attention(q, k[0], v, block_size=4, halo_size=1)
    with pytest.raises(ValueError, match="maps of one size"):
        halo_attention(q, k, v[:, :1], block_size=4, halo_size=1)
    with pytest.raises(ValueError, match=r"share a floating dtype, got v of torch\.float32"):
        halo_attention(q, k, v.float(), block_size=4, halo_size=1)
