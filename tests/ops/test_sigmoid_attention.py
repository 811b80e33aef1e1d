"""Sigmoid attention: the formula, every engine against it, its promises, and what a wrong call is told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gatework import ops
from gatework.bench.memory import PeakMeter, is_available
from gatework.masks import (
    BlockSparse,
    Causal,
    CausalDocument,
    Document,
    GlobalWindow,
    Neighborhood,
    PrefixLM,
    SlidingWindow,
)
from gatework.ops.attention import kernels
from gatework.ops.attention.blocked import plan_tiles
from gatework.ops.attention.planning import TileSize
from gatework.ops.sigmoid_attention import blocked
from tests.masks.families import FAMILIES
from tests.ops.test_attention import DOUBLE, assert_same, broadcastable, outputs_and_gradients, randn
from tests.warm_python import run_python

needs_numba = pytest.mark.skipif(not kernels.is_available(), reason="numba is not installed")
#: An engine, what it computes in, and how far it may lie from the definition in float64: rounding alone.
ENGINES = {
    "dense": ("dense", DOUBLE, 1e-12),
    "torch-float64": ("blocked-torch", DOUBLE, 1e-11),
    "torch-float32": ("blocked-torch", torch.float32, 1e-4),
    "numba": ("blocked-numba", torch.float32, 1e-4),
}
NUMBA = pytest.param("numba", marks=needs_numba)
#: Small tiles, so that small masks have many; and the tiles that are used.
TILES = [TileSize(4, 3, 4, 2), TileSize(7, 5, 9, 1), None]


@pytest.fixture(scope="module", params=["dense", "torch-float64", "torch-float32", NUMBA])
def engine(request):
    return ENGINES[request.param]


def written_out(q, k, v, bias, allowed, slopes, offset, scale):
    """Sigmoid attention of one sequence with no tensor operation but indexing."""
    heads, q_length, head_dim = q.shape
    kv_heads, kv_length, value_dim = v.shape
    y = torch.zeros(heads, q_length, value_dim, dtype=DOUBLE)
    for h in range(heads):
        g = h // (heads // kv_heads)
        for i in range(q_length):
            for j in range(kv_length):
                if allowed[h, i, j]:
                    s = scale * sum(float(q[h, i, c]) * float(k[g, j, c]) for c in range(head_dim))
                    s += float(bias[h, i, j]) - float(slopes[h]) * abs(i + offset - j)
                    y[h, i] += v[g, j] / (1 + math.exp(-s))
    return y


def test_reference_is_the_formula():
    q, k, v = randn(1, 4, 3, 5), randn(1, 2, 6, 5), randn(1, 2, 6, 2)
    bias, slopes = randn(4, 3, 6), torch.rand(4, dtype=DOUBLE)
    allowed = randn(4, 3, 6) > 0
    expected = written_out(q[0], k[0], v[0], bias, allowed, slopes, 3, 0.7)
    options = {"mask": allowed, "alibi_slopes": slopes, "scale": 0.7}
    ours = ops.sigmoid_attention_reference(q, k, v, bias, query_offset=3, **options)
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-12)
    # The queries of the public function are the last positions, which is the offset of 3 above.
    assert torch.equal(ops.sigmoid_attention(q, k, v, bias=bias, engine="reference", **options), ours)


def compare(engine, tensors, options, size=None):
    """Hold an engine, with tiles of some size, to the definition in float64."""
    name, dtype, tolerance = engine
    theirs = outputs_and_gradients(ops.sigmoid_attention, tensors, options | {"engine": "reference"})
    inputs = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        if size is not None:
            patch.setattr(blocked, "_TORCH_TILES", size)
            patch.setattr(blocked, "_KERNEL_TILES", size)
        ours = outputs_and_gradients(ops.sigmoid_attention, inputs, options | {"engine": name})
    assert_same([part.double() for part in ours], theirs, tolerance)


def call(data, mask, q_length, kv_length, *, pair_bias):
    """Tensors and options that go with a mask."""
    batch = mask.batch_size or data.draw(st.integers(0, 2))
    kv_heads, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    heads = mask.num_heads or kv_heads * groups
    kv_heads = heads if mask.num_heads else kv_heads
    head_dim, value_dim = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 5))
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    tensors = {
        "q": randn(batch, heads, q_length, head_dim, gen=gen),
        "k": randn(batch, kv_heads, kv_length, head_dim, gen=gen),
        "v": randn(batch, kv_heads, kv_length, value_dim, gen=gen),
    }
    options = {
        "mask": mask,
        "is_causal": data.draw(st.booleans()),
        "scale": data.draw(st.sampled_from([None, 0.0, -0.7])),
        "query_offset": data.draw(st.sampled_from([None, -2, 5])),
    }
    kind = data.draw(st.sampled_from(["default", "number", "rows", "pairs"]))
    if kind == "number":
        options["bias"] = data.draw(st.sampled_from([0, -1.5]))
    elif kind == "rows" or (kind == "pairs" and pair_bias):
        shape = (batch, heads, q_length, kv_length if kind == "pairs" else 1)
        tensors["bias"] = randn(*broadcastable(data.draw, shape), gen=gen)
    if data.draw(st.booleans()):
        shape = data.draw(st.sampled_from([(heads,), (1, heads), (batch, heads)]))
        options["alibi_slopes"] = torch.rand(shape, generator=gen)
    return tensors, options


random_masks = given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)), size=st.sampled_from(TILES))


@settings(max_examples=120, deadline=None)
@random_masks
def test_every_mask(engine, data, family, size):
    check_random_mask(engine, data, family, size)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@random_masks
def test_every_mask_many_times(engine, data, family, size):
    check_random_mask(engine, data, family, size)


def check_random_mask(engine, data, family, size):
    sample = FAMILIES[family](data.draw)
    pair_bias = engine[0] != "blocked-numba"
    tensors, options = call(data, sample.mask, sample.q_length, sample.kv_length, pair_bias=pair_bias)
    compare(engine, tensors, options, size)


@settings(max_examples=40, deadline=None)
@given(
    q_length=st.integers(0, 600),
    kv_length=st.integers(0, 600),
    mask=st.sampled_from(
        [
            None,
            SlidingWindow(100, 3),
            Causal() & ~SlidingWindow(3, 0),
            GlobalWindow(20, 5),
            PrefixLM(77),
            SlidingWindow(64, 0).with_query_offset(200),
        ]
    ),
    is_causal=st.booleans(),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    rows=st.sampled_from([64, 256]),
    seed=st.integers(0, 99),
)
def test_lengths_of_many_tiles(engine, q_length, kv_length, mask, is_causal, heads, rows, seed):
    gen = torch.Generator().manual_seed(seed)
    tensors = {
        "q": randn(1, heads[0], q_length, 8, gen=gen),
        "k": randn(1, heads[1], kv_length, 8, gen=gen),
        "v": randn(1, heads[1], kv_length, 8, gen=gen),
    }
    # Rows that a stretch of keys masks throughout are left out of tiles of more than 64.
    compare(engine, tensors, {"mask": mask, "is_causal": is_causal}, TileSize(rows, 64, 36, 8))


@pytest.mark.parametrize("name", ["dense", "blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_a_fixed_bias_between_keys_is_read_by_every_engine(name):
    q, k, v = randn(2, 4, 90, 6), randn(2, 2, 70, 6), randn(2, 2, 70, 5)
    bias = randn(4, 90, 70).masked_fill(randn(4, 90, 70) > 1, -torch.inf)
    expected = ops.sigmoid_attention(q, k, v, bias=bias, engine="reference")
    ours = ops.sigmoid_attention(q.float(), k.float(), v.float(), bias=bias.float(), engine=name)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


def test_masks_that_tell_heads_and_sequences_apart(engine):
    gen = torch.Generator().manual_seed(0)
    mask = BlockSparse.from_map(torch.rand(2, 2, 6, 5, generator=gen) > 0.6, 9, group_size=2)
    tensors = {
        "q": randn(2, 4, 54, 4, gen=gen),
        "k": randn(2, 2, 45, 4, gen=gen),
        "v": randn(2, 2, 45, 4, gen=gen),
        "bias": randn(4, 1, 1, gen=gen),
    }
    compare(engine, tensors, {"mask": mask})


@pytest.mark.parametrize("name", ["dense", "blocked-torch"])
def test_gradients(name):
    shapes = {"q": (1, 4, 7, 3), "k": (1, 2, 5, 3), "v": (1, 2, 5, 2), "bias": (4, 7, 5)}
    tensors = [randn(*shape).requires_grad_() for shape in shapes.values()]

    def function(q, k, v, bias):
        return ops.sigmoid_attention(q, k, v, bias=bias, mask=SlidingWindow(2, 1), engine=name)

    assert torch.autograd.gradcheck(function, tensors)


# --- what it promises ---


def test_results_for_parts_of_the_keys_add_up():
    q, k, v = randn(2, 4, 6, 8), randn(2, 2, 20, 8), randn(2, 2, 20, 8)
    slopes = torch.rand(4, dtype=DOUBLE)
    options = {"bias": -3.0, "alibi_slopes": slopes, "is_causal": True}
    whole = ops.sigmoid_attention(q, k, v, **options)
    parts = [
        # The queries are positions 14 to 19; counted from where a part begins, they are later or earlier.
        ops.sigmoid_attention(q, k[:, :, a:b], v[:, :, a:b], query_offset=14 - a, **options)
        for a, b in ((0, 7), (7, 16), (16, 20))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_decoding_with_a_cache_equals_the_whole(engine, chunk):
    name, dtype, tolerance = engine
    q, k, v = (randn(1, 2, 23, 4, dtype=dtype) for _ in range(3))
    options = {"bias": -math.log(23), "is_causal": True, "engine": name}
    options["alibi_slopes"] = torch.rand(2, dtype=dtype)
    whole = ops.sigmoid_attention(q, k, v, **options)
    ends = [*range(chunk, 23, chunk), 23]
    steps = [
        ops.sigmoid_attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], **options)
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    torch.testing.assert_close(torch.cat(steps, 2), whole, rtol=0, atol=tolerance)


def test_the_default_bias_is_minus_the_logarithm_of_the_number_of_keys():
    q, k, v = randn(1, 2, 3, 4), randn(1, 2, 11, 4), randn(1, 2, 11, 4)
    expected = ops.sigmoid_attention(q, k, v, bias=-math.log(11))
    assert torch.equal(ops.sigmoid_attention(q, k, v), expected)
    # Where products are zero it weighs almost as uniformly as a softmax.
    ours = ops.sigmoid_attention(torch.zeros_like(q), k, v)
    torch.testing.assert_close(ours, (v.sum(2, keepdim=True) / 12).expand_as(ours), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [None, *(name for name, _, _ in ENGINES.values())])
@pytest.mark.parametrize("size", [1.0, 3e4])
def test_extreme_logits_stay_finite_and_masked_weights_are_zero(name, size):
    if name == "blocked-numba" and not kernels.is_available():
        pytest.skip("numba is not installed")
    q = torch.full((1, 1, 80, 4), size, requires_grad=True)
    k = torch.where(torch.arange(80) % 2 == 0, size, -size).view(1, 1, 80, 1).expand(1, 1, 80, 4)
    mask, identity = SlidingWindow(9, 0), torch.eye(80)[None, None]
    # Identity values show the weights themselves.
    weights = ops.sigmoid_attention(q, k, identity, mask=mask, engine=name)
    allowed = mask.to_dense(80, 80)
    assert torch.all(weights[0, 0][~allowed] == 0)
    assert weights.isfinite().all()
    if size > 1:
        expected = (allowed & (torch.arange(80) % 2 == 0)).float()
        torch.testing.assert_close(weights[0, 0], expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(weights.sum(), q)
    assert gradient.isfinite().all()


def test_a_query_that_is_allowed_nothing_gets_zeros(engine):
    name, dtype, _ = engine
    tensors = {key: randn(1, 2, 9, 4, dtype=dtype) for key in "qkv"}
    y, *gradients = outputs_and_gradients(
        ops.sigmoid_attention, tensors, {"mask": SlidingWindow(0, 2).with_query_offset(5), "engine": name}
    )
    assert torch.all(y[:, :, 4:] == 0)
    assert torch.all(y[:, :, :4] != 0)
    assert torch.all(gradients[0][:, :, 4:] == 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("name", ["dense", "blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_lower_precisions_are_rounded_once(name, dtype, tolerance):
    tensors = {key: randn(1, 2, 70, 16, dtype=torch.float32).to(dtype) for key in "qkv"}
    options = {"is_causal": True, "bias": 0.0}  # results of the size of the values
    wide = {key: tensor.double() for key, tensor in tensors.items()}
    theirs = outputs_and_gradients(ops.sigmoid_attention, wide, options | {"engine": "reference"})
    ours = outputs_and_gradients(ops.sigmoid_attention, tensors, options | {"engine": name})
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        # Relative to the largest number: half a unit in the last place, and the rounded incoming gradient.
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("mask", [None, SlidingWindow(20, 0), torch.ones(200, 200, dtype=torch.bool)])
def test_autocast(mask):
    layer = torch.nn.Linear(32, 96)
    x = torch.randn(2, 200, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = layer(x).view(2, 200, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = ops.sigmoid_attention(q, k, v, mask=mask, bias=0.0)
    y.sum().backward()
    exact = ops.sigmoid_attention(q.float(), k.float(), v.float(), mask=mask, bias=0.0)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.01, atol=0.2)
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dense", "blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_layout_in_memory_does_not_matter(name):
    q, k, v = (torch.randn(2, 90, 4, 8).transpose(1, 2) for _ in range(3))
    expected = ops.sigmoid_attention(*(x.contiguous() for x in (q, k, v)), is_causal=True, engine=name)
    ours = ops.sigmoid_attention(q, k, v, is_causal=True, engine=name)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "blocked-torch"])
def test_dropout_drops_weights_and_scales_the_rest(name):
    q, k = randn(1, 2, 60, 4), randn(1, 2, 60, 4)
    identity = torch.eye(60, dtype=DOUBLE).expand(1, 2, 60, 60).clone().requires_grad_()
    whole = ops.sigmoid_attention(q, k, identity, is_causal=True, engine=name)
    some = ops.sigmoid_attention(q, k, identity, is_causal=True, dropout_p=0.25, engine=name)
    kept = some != 0
    assert 0.65 < kept[whole != 0].double().mean() < 0.85
    torch.testing.assert_close(some[kept], whole[kept] / 0.75)
    (gradient,) = torch.autograd.grad(some.sum(), identity)  # the same weights are dropped once more
    torch.testing.assert_close(gradient[..., 0], some.sum(2))


@pytest.mark.parametrize("name", [NUMBA, "torch-float64", "dense"])
def test_no_output_sees_the_future(name):
    name, dtype, _ = ENGINES[name]
    q, k, v = (randn(1, 2, 150, 4, dtype=dtype) for _ in range(3))
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 100:] += 1
    v2[:, :, 100:] -= 1
    options = {"is_causal": True, "engine": name}
    a, b = (ops.sigmoid_attention(q, *pair, **options) for pair in ((k, v), (k2, v2)))
    assert torch.equal(a[:, :, :100], b[:, :, :100])
    assert not torch.equal(a[:, :, 100:], b[:, :, 100:])


# --- as PyTorch sees it ---


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck itself
@pytest.mark.parametrize("use_kernels", [False, pytest.param(True, marks=needs_numba)])
def test_opcheck(use_kernels):
    q, k, v = (randn(1, heads, 40, 4, dtype=torch.float32) for heads in (4, 2, 2))
    plan = plan_tiles(CausalDocument([10, 30]), 40, 40, TileSize(8, 8, 4, 1))
    options = (torch.randn(1, 4, 1), None, torch.rand(1, 4), None, plan, 0.5, 0.0, 0, use_kernels)
    torch.library.opcheck(blocked._forward_op, (*(x.requires_grad_() for x in (q, k, v)), *options))
    inputs = (randn(1, 4, 40, 4, dtype=torch.float32), *(x.detach() for x in (q, k, v)), *options)
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(blocked._backward_op, (*inputs, True, False), test_utils=check)


@pytest.mark.compile
@pytest.mark.parametrize(
    "mask",
    [None, CausalDocument([100, 200]), Neighborhood((15, 20), (5, 5)), Document([7, 293])],
    ids=["none", "causal-documents", "neighborhood", "documents"],
)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=str)
def test_compiles_without_a_break(mask, dtype):
    tensors = {name: randn(1, 2, 300, 4, dtype=dtype) for name in "qkv"} | {"bias": randn(2, 1, 1)}
    torch.compiler.reset()
    compiled = torch.compile(ops.sigmoid_attention, fullgraph=True, backend="aot_eager")
    options = {"mask": mask, "is_causal": mask is None}
    assert_same(
        outputs_and_gradients(compiled, tensors, options),
        outputs_and_gradients(ops.sigmoid_attention, tensors, options),
        tolerance=1e-12,  # of float64: one order of sums may be another
    )


def test_lengths_that_change_compile():
    # In a process of its own: the compiler cannot trace what checks annotations in the tests.
    program = """
import torch
from gatework import ops

compiled = torch.compile(ops.sigmoid_attention, fullgraph=True, backend="aot_eager")
for length in (300, 310, 321):
    q, k = torch.randn(1, 2, length - 50, 4), torch.randn(1, 2, length, 4)
    expected = ops.sigmoid_attention(q, k, k, is_causal=True)
    torch.testing.assert_close(compiled(q, k, k, is_causal=True), expected)
"""
    run_python(["-c", program], check=True)


@pytest.mark.parametrize("name", ["blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_arithmetic_is_counted_by_allowed_pairs(name):
    mask = SlidingWindow(40, 3) & CausalDocument([100, 200])
    q = torch.randn(2, 4, 300, 8, requires_grad=True)
    k, v = torch.randn(2, 2, 300, 8, requires_grad=True), torch.randn(2, 2, 300, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.sigmoid_attention(q, k, v, mask=mask, engine=name).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * 2 * 4 * mask.count(300, 300) * (8 + 6)


def memory_calls(description):
    """A short call, which compiles and plans, and the one whose memory is measured."""

    def calls(length):
        q = torch.randn(1, 2, length, 16, requires_grad=True)
        options = {"is_causal": True, "engine": description["engine"]}
        return lambda: ops.sigmoid_attention(q, q, q, **options).sum().backward()

    return calls(256), calls(description["length"])


@pytest.mark.skipif(not is_available(), reason="peak memory is known on Linux only")
def test_memory_grows_with_the_length_and_not_its_square():
    length = 8192
    found = {}
    with PeakMeter("tests.ops.test_sigmoid_attention:memory_calls", num_threads=1) as meter:
        engines = ["dense", "blocked-torch", *(["blocked-numba"] if kernels.is_available() else [])]
        for engine in engines:
            # The definition shows that the meter sees what is held: at a quarter of the length.
            tokens = length // 4 if engine == "dense" else length
            peak, reason = meter.measure({"engine": engine, "length": tokens})
            assert reason is None
            found[engine] = peak / (2 * tokens * 4)  # numbers of float32 for each query of each head
    assert found.pop("dense") > length // 4
    # Rows of tensors: q, output, its gradient, three more of 16 channels; scores of a tile of PyTorch's
    # operators in two buffers, 256 * 4096 of each head. The weights of the whole length would be 8192.
    assert max(found.values()) < 1500, found


@pytest.mark.skipif(not kernels.is_available(), reason="numba is not installed")
def test_the_same_threads_give_the_same_bits():
    tensors = {name: torch.randn(2, 3, 700, 16) for name in "qkv"} | {"bias": torch.randn(3, 1, 1)}
    options = {"is_causal": True, "engine": "blocked-numba"}
    torch.set_num_threads(2)
    first, second = (outputs_and_gradients(ops.sigmoid_attention, tensors, options) for _ in range(2))
    assert_same(first, second, tolerance=0.0)
