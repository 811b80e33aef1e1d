"""Every engine computes what the reference defines: any mask, shape, dtype and option, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gatework import masks, ops
from gatework.masks import BlockSparse, Causal, CausalDocument, Neighborhood, SlidingWindow
from gatework.ops.attention import Alibi, blocked, kernels
from gatework.ops.attention.planning import TileSize, make_plan
from tests.masks.families import FAMILIES
from tests.ops.test_attention import DOUBLE, assert_same, outputs_and_gradients, randn
from tests.warm_python import run_python

#: Small tiles, so that small masks have many; and the tiles that are used.
TILES = [TileSize(4, 3, 4, 2), TileSize(7, 5, 9, 1), None]
#: An engine, what it computes in, and how far it may lie from the definition in float64: rounding alone.
BLOCKED = {
    "torch-float64": ("blocked-torch", DOUBLE, 1e-11),
    "torch-float32": ("blocked-torch", torch.float32, 1e-4),
    "numba": ("blocked-numba", torch.float32, 1e-4),
}
needs_numba = pytest.mark.skipif(not kernels.is_available(), reason="numba is not installed")


@pytest.fixture(
    scope="module", params=["torch-float64", "torch-float32", pytest.param("numba", marks=needs_numba)]
)
def engine(request):
    return BLOCKED[request.param]


def compare(engine, tensors, options, size=None):
    """Hold an engine, with tiles of some size, to the definition in float64."""
    name, dtype, tolerance = engine
    theirs = outputs_and_gradients(ops.attention, tensors, options | {"engine": "reference"})
    inputs = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        if size is not None:
            patch.setattr(blocked, "_TORCH_TILES", size)
            patch.setattr(blocked, "_KERNEL_TILES", size)
        ours = outputs_and_gradients(ops.attention, inputs, options | {"engine": name})
    assert_same([part.double() for part in ours], theirs, tolerance)


def call(data, mask, q_length, kv_length, *, with_gradient_of_bias):
    """Tensors and options that go with a mask."""
    batch = mask.batch_size or data.draw(st.integers(0, 2))
    kv_heads, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    heads = mask.num_heads or kv_heads * groups
    kv_heads = heads if mask.num_heads else kv_heads
    head_dim = data.draw(st.integers(1, 5))
    value_dim = data.draw(st.sampled_from([head_dim, 0, 3]))
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    tensors = {
        "q": randn(batch, heads, q_length, head_dim, gen=gen),
        "k": randn(batch, kv_heads, kv_length, head_dim, gen=gen),
        "v": randn(batch, kv_heads, kv_length, value_dim, gen=gen),
    }
    options = {
        "mask": mask,
        "scale": data.draw(st.sampled_from([None, 0.0, -0.7])),
        "softcap": data.draw(st.sampled_from([None, None, 0.5])),
        "return_lse": data.draw(st.booleans()),
    }
    kind = data.draw(st.sampled_from(["none", "alibi", "bias"]))
    if kind == "alibi":
        options["bias"] = Alibi(tuple(0.1 * (h + 1) for h in range(heads)), data.draw(st.integers(-3, 3)))
    elif kind == "bias" and with_gradient_of_bias:
        shape = [data.draw(st.sampled_from([1, size])) for size in (batch, heads, q_length, kv_length)]
        tensors["bias"] = randn(*shape[data.draw(st.integers(0, 4)) :], gen=gen)
    if data.draw(st.booleans()):
        tensors["sinks"] = randn(heads, gen=gen)
    return tensors, options


random_masks = given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)), size=st.sampled_from(TILES))


@settings(max_examples=150, deadline=None)
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
    gradient = engine[0] == "blocked-torch"
    tensors, options = call(
        data, sample.mask, sample.q_length, sample.kv_length, with_gradient_of_bias=gradient
    )
    compare(engine, tensors, options, size)


@settings(max_examples=60, deadline=None)
@given(
    q_length=st.integers(0, 600),
    kv_length=st.integers(0, 600),
    mask=st.sampled_from(
        [
            None,
            Causal(),
            SlidingWindow(100, 3),
            ~SlidingWindow(40, 100),
            Causal() & ~SlidingWindow(3, 0),
            masks.GlobalWindow(20, 5),
            masks.PrefixLM(77),
            masks.BlockCausal(96),
            SlidingWindow(9, 9) | masks.BlockCausal(128),
            SlidingWindow(64, 0).with_query_offset(200),
        ]
    ),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    rows=st.sampled_from([64, 256]),
    seed=st.integers(0, 99),
)
def test_lengths_of_many_tiles(engine, q_length, kv_length, mask, heads, rows, seed):
    gen = torch.Generator().manual_seed(seed)
    tensors = {
        "q": randn(1, heads[0], q_length, 8, gen=gen),
        "k": randn(1, heads[1], kv_length, 8, gen=gen),
        "v": randn(1, heads[1], kv_length, 8, gen=gen),
    }
    # Rows that a stretch of keys masks throughout are left out of tiles of more than 64.
    compare(engine, tensors, {"mask": mask, "return_lse": True}, TileSize(rows, 64, 36, 8))


@pytest.mark.parametrize("group_size", [1, 2])
def test_masks_that_tell_heads_and_sequences_apart(engine, group_size):
    gen = torch.Generator().manual_seed(0)
    block_map = torch.rand(2, 2, 6, 5, generator=gen) > 0.6
    block_map[0, 0, 2] = False  # queries that may attend to nothing
    sizes = torch.full((6,), 16), torch.full((5,), 24)
    mask = BlockSparse(block_map, *sizes, group_size=group_size)
    tensors = {
        "q": randn(2, 2 * group_size, 96, 8, gen=gen),
        "k": randn(2, 2, 120, 8, gen=gen),
        "v": randn(2, 2, 120, 8, gen=gen),
    }
    compare(engine, tensors, {"mask": mask, "return_lse": True})
    compare(engine, tensors, {"mask": mask & Causal(), "softcap": 3.0})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_half_precisions_are_computed_in_float32(name, dtype):
    tensors = [randn(1, 2, 300, 16, dtype=dtype) for _ in range(3)]
    y, lse = ops.attention(*tensors, mask=SlidingWindow(40, 0), return_lse=True, engine=name)
    wanted, wanted_lse = ops.attention(
        *(tensor.double() for tensor in tensors), mask=SlidingWindow(40, 0), return_lse=True
    )
    assert y.dtype == dtype
    assert lse.dtype == torch.float32
    # One rounding of the output, half a unit in its last place, and nothing before it.
    torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=1e-5)


def test_gradients_with_dropout():
    inputs = [randn(1, 2, 9, 3).requires_grad_() for _ in range(3)] + [randn(2, 9, 1).requires_grad_()]

    def dropped(q, k, v, bias):
        torch.manual_seed(3)  # the same weights are dropped in every call
        return ops.attention(q, k, v, mask=Causal(), bias=bias, dropout_p=0.4, engine="blocked-torch")

    assert torch.autograd.gradcheck(dropped, inputs)
    torch.manual_seed(4)
    assert not torch.equal(
        dropped(*inputs), ops.attention(*inputs[:3], mask=Causal(), dropout_p=0.4, engine="blocked-torch")
    )


@pytest.mark.parametrize(
    "mask", [CausalDocument([3, 5]), Neighborhood((2, 4), (2, 3), dilation=(1, 1)), ~Causal()], ids=repr
)
def test_gradcheck(mask):
    inputs = [randn(1, 2, 8, 2).requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.attention(q, k, v, mask=mask, softcap=2.0, return_lse=mask != ~Causal()), inputs
    )
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.attention(q, k, v, mask=mask, engine="blocked-torch"), inputs
    )


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck itself
@pytest.mark.parametrize("use_kernels", [False, pytest.param(True, marks=needs_numba)])
def test_opcheck(use_kernels):
    gen = torch.Generator().manual_seed(0)
    q, k, v = (randn(1, heads, 40, 4, gen=gen, dtype=torch.float32) for heads in (4, 2, 2))
    plan = blocked.plan_tiles(CausalDocument([10, 30]), 40, 40, TileSize(8, 8, 4, 1))
    options = (None, None, None, plan, 0.5, None, 0.0, 0, use_kernels)
    torch.library.opcheck(blocked._forward_op, (*(x.requires_grad_() for x in (q, k, v)), *options))
    q, k, v = (x.detach() for x in (q, k, v))
    y, lse = blocked._forward_op(q, k, v, *options)
    torch.library.opcheck(
        blocked._backward_op,
        (y.clone(), lse.clone(), y, lse, q, k, v, *options, False),
        test_utils="test_schema",
    )
    torch.library.opcheck(
        blocked._backward_op,
        (y.clone(), lse.clone(), y, lse, q, k, v, *options, False),
        test_utils="test_faketensor",
    )


@pytest.mark.compile
@pytest.mark.parametrize(
    "mask",
    [
        CausalDocument([100, 200]),
        Neighborhood((15, 20), (5, 5)),
        BlockSparse.from_map(torch.eye(6, dtype=torch.bool), 50),
        (Causal() & SlidingWindow(9, 9)).with_query_offset(3),
    ],
    ids=["documents", "neighborhood", "block-sparse", "offset"],
)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32], ids=str)
def test_compiles_with_the_plan_as_a_constant(mask, dtype):
    tensors = {name: randn(1, 2, 300, 4, dtype=dtype) for name in "qkv"}
    torch.compiler.reset()
    compiled = torch.compile(ops.attention, fullgraph=True, backend="aot_eager")
    options = {"mask": mask, "engine": "blocked"}
    assert_same(
        outputs_and_gradients(compiled, tensors, options),
        outputs_and_gradients(ops.attention, tensors, options),
        tolerance=0.0,
    )


def test_masks_made_in_the_graph_compile():
    # In a process of its own: the compiler cannot trace what checks annotations in the tests.
    program = """
import torch
from gatework import ops
from gatework.masks import Neighborhood, SlidingWindow

def attend(q):
    mask = SlidingWindow(9, 3) & ~Neighborhood((15, 20), (3, 3))
    return ops.attention(q, q, q, mask=mask, engine="blocked")

q = torch.randn(1, 2, 300, 4, dtype=torch.float64)
assert torch.equal(torch.compile(attend, fullgraph=True, backend="aot_eager")(q), attend(q))
"""
    run_python(["-c", program], check=True)


@pytest.mark.parametrize("name", ["blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_arithmetic_is_counted_by_allowed_pairs(name):
    mask = SlidingWindow(40, 3) & CausalDocument([100, 200])
    q = torch.randn(2, 4, 300, 8, requires_grad=True)
    k, v = torch.randn(2, 2, 300, 8, requires_grad=True), torch.randn(2, 2, 300, 6, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        ops.attention(q, k, v, mask=mask, engine=name).sum().backward()
    pairs = 2 * 4 * mask.count(300, 300)
    assert counter.get_total_flops() == (2 + 5) * pairs * (8 + 6)


@pytest.mark.parametrize("name", ["blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
def test_what_inference_remembers_serves_training(name):
    mask = SlidingWindow(37, 11)  # of no other test: the plan is made here
    q = torch.randn(1, 2, 300, 8)
    with torch.inference_mode():
        wanted = ops.attention(q, q, q, mask=mask, engine=name)
    leaf = q.clone().requires_grad_()
    y = ops.attention(leaf, leaf, leaf, mask=mask, engine=name)
    torch.testing.assert_close(y, wanted, rtol=0, atol=0)
    y.sum().backward()
    assert leaf.grad.isfinite().all()


def test_a_plan_is_made_on_the_cpu_whatever_the_default_device():
    mask = CausalDocument([7, 35])
    with torch.device("meta"):
        plan = blocked.plan_tiles(mask, 42, 42, TileSize(8, 8, 4, 1))
    assert plan.device.type == "cpu"


def test_a_plan_does_not_grow_with_pairs():
    size = TileSize(128, 64, 36, 16)
    for mask in (Causal(), SlidingWindow(256, 256), masks.PrefixLM(1000)):
        small, large = (
            sum(part.nbytes for part in make_plan(mask, length, length, size)) for length in (8192, 65536)
        )
        assert large <= 8.5 * small


def test_without_numba_everything_works_but_the_kernels():
    program = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import torch
from gatework import ops
from gatework.masks import SlidingWindow
q = torch.randn(1, 2, 600, 8)
y = ops.attention(q, q, q, mask=SlidingWindow(20, 0), engine="blocked")
assert (y - ops.attention(q, q, q, mask=SlidingWindow(20, 0), engine="reference")).abs().max() < 1e-5
try:
    ops.attention(q, q, q, mask=SlidingWindow(20, 0), engine="blocked-numba")
except ValueError as error:
    print(error)
"""
    said = run_python(["-c", program], check=True).stdout
    assert said == "engine 'blocked-numba' needs numba: pip install 'gatework[cpu]'\n"
