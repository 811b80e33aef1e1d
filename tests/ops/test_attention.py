import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gatework import ops
from gatework.masks import And, Causal, Full, Or, QueryOffset, SlidingWindow
from gatework.ops.attention import attention_reference

windows = st.builds(SlidingWindow, st.integers(0, 9), st.integers(0, 9))
simple = st.one_of(st.just(Full()), st.just(Causal()), windows)
masks = st.one_of(
    simple,
    st.builds(And, simple, simple),
    st.builds(Or, simple, simple),
    st.builds(QueryOffset, simple, st.integers(-9, 9)),
)
seeds = st.integers(0, 999)
DOUBLE = torch.float64
#: Engines that compute in float64 and know dropout; the others have tests of their own.
EXACT = ["reference", "dense", "blocked", "blocked-torch"]


def randn(*shape, gen=None, dtype=DOUBLE):
    return torch.randn(shape, generator=gen, dtype=DOUBLE).to(dtype)


def broadcastable(draw, shape):
    """A shape of rank 0 to 4 that broadcasts to ``shape``."""
    shape = [draw(st.sampled_from([1, size])) for size in shape]
    return shape[draw(st.integers(0, 4)) :]


@st.composite
def calls(draw):
    """Tensors, options and a seed's worth of randomness: everything attention can be asked for."""
    gen = torch.Generator().manual_seed(draw(seeds))
    batch, kv_heads, groups = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    q_length, kv_length = (
        draw(st.sampled_from([0, 1, 2, 5, 7, 16])),
        draw(st.sampled_from([0, 1, 2, 5, 7, 16])),
    )
    head_dim, value_dim = draw(st.integers(1, 5)), draw(st.integers(0, 5))
    heads = kv_heads * groups
    shape = (batch, heads, q_length, kv_length)
    tensors = {
        "q": randn(batch, heads, q_length, head_dim, gen=gen),
        "k": randn(batch, kv_heads, kv_length, head_dim, gen=gen),
        "v": randn(batch, kv_heads, kv_length, value_dim, gen=gen),
    }
    if draw(st.booleans()):
        tensors["bias"] = randn(*broadcastable(draw, shape), gen=gen)
    if draw(st.booleans()):
        tensors["sinks"] = randn(heads, gen=gen)
    mask = draw(st.one_of(st.none(), masks, st.just("tensor")))
    if mask == "tensor":
        mask = randn(*broadcastable(draw, shape), gen=gen) > 0
    return tensors, {
        "mask": mask,
        "scale": draw(st.sampled_from([None, 0.0, -0.7, 2.0])),
        "softcap": draw(st.sampled_from([None, None, 0.5, 3.0])),
        "return_lse": draw(st.booleans()),
    }


def outputs_and_gradients(function, tensors, options):
    """Everything a call returns, and the gradient of a fixed mixture of it."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gen = torch.Generator().manual_seed(1)
    # lse is -inf where nothing is allowed: such rows have no gradient to compare.
    total = sum(
        (y.masked_fill(y.isinf(), 0.0) * randn(*y.shape, gen=gen, dtype=y.dtype)).sum() for y in outputs
    )
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return [*outputs, *gradients]


def assert_same(ours, theirs, tolerance=1e-11):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def written_out(q, k, v, mask=None, bias=None, scale=None, softcap=None, sinks=None):
    """Attention of one sequence with no tensor operation but indexing: loops over heads, queries and keys."""
    heads, q_length, head_dim = q.shape
    kv_heads, kv_length, value_dim = v.shape
    y, lse = torch.zeros(heads, q_length, value_dim, dtype=DOUBLE), torch.zeros(heads, q_length, dtype=DOUBLE)
    for h in range(heads):
        g = h // (heads // kv_heads)
        for i in range(q_length):
            logits = {}
            for j in range(kv_length):
                if mask is None or mask[h, i, j]:
                    s = sum(float(q[h, i, c]) * float(k[g, j, c]) for c in range(head_dim))
                    s *= head_dim**-0.5 if scale is None else scale
                    s = s if softcap is None else softcap * math.tanh(s / softcap)
                    logits[j] = s if bias is None else s + float(bias[h, i, j])
            total = sum(math.exp(s) for s in logits.values())
            total += 0.0 if sinks is None else math.exp(float(sinks[h]))
            lse[h, i] = math.log(total) if total else -math.inf
            for c in range(value_dim):
                y[h, i, c] = sum(math.exp(s) / total * float(v[g, j, c]) for j, s in logits.items())
    return y, lse


@settings(max_examples=60, deadline=None)
@given(call=calls())
def test_reference_is_the_formula(call):
    tensors, options = call
    options.pop("return_lse")
    y, lse = attention_reference(**tensors, **options)
    scores = (*tensors["q"].shape[:3], tensors["k"].shape[2])
    mask, bias = options.pop("mask"), tensors.pop("bias", None)
    if mask is not None and not isinstance(mask, torch.Tensor):
        mask = mask.to_dense(*scores[2:])
    for b in range(scores[0]):
        wanted, wanted_lse = written_out(
            *(tensors[name][b] for name in "qkv"),
            mask=None if mask is None else mask.expand(scores)[b],
            bias=None if bias is None else bias.expand(scores)[b],
            sinks=tensors.get("sinks"),
            **options,
        )
        assert_same((y[b], lse[b]), (wanted, wanted_lse))


@settings(max_examples=300, deadline=None)
@given(call=calls())
def test_dense_is_the_reference(call):
    theirs = outputs_and_gradients(ops.attention, call[0], call[1] | {"engine": "reference"})
    for engine in (None, "dense"):
        assert_same(outputs_and_gradients(ops.attention, call[0], call[1] | {"engine": engine}), theirs)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(0, 2),
    groups=st.integers(1, 2),
    q_length=st.integers(0, 330),
    longer=st.sampled_from([0, 0, -50, -1, 1, 64]),
    left=st.sampled_from([0, 1, 5, 31, 32, 40, 64, 100, 300]),
    right=st.sampled_from([0, 0, 1, 33]),
    offset=st.sampled_from([0, 0, -70, -3, 1, 40, 64, 1000]),
    seed=seeds,
)
@example(
    batch=1, groups=1, q_length=1100, longer=0, left=500, right=0, offset=0, seed=0
)  # largest tile, twice
@example(batch=1, groups=2, q_length=97, longer=0, left=0, right=0, offset=0, seed=0)  # only the token itself
def test_blocked_is_the_reference(batch, groups, q_length, longer, left, right, offset, seed):
    gen = torch.Generator().manual_seed(seed)
    kv_length = max(0, q_length + longer)
    tensors = {
        "q": randn(batch, 2 * groups, q_length, 3, gen=gen),
        "k": randn(batch, 2, kv_length, 3, gen=gen),
        "v": randn(batch, 2, kv_length, 2, gen=gen),
    }
    options = {"mask": SlidingWindow(left, right).with_query_offset(offset)}
    theirs = outputs_and_gradients(ops.attention, tensors, options | {"engine": "reference"})
    for engine in (None, "blocked"):
        assert_same(outputs_and_gradients(ops.attention, tensors, options | {"engine": engine}), theirs)


@pytest.mark.parametrize("scale", [0.0, -0.7, -1e-30, 1e-30, 3.0])
@pytest.mark.parametrize("mask", [None, Causal(), SlidingWindow(40, 0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_any_finite_scale(scale, mask, dtype):
    tensors = {name: randn(1, 2, 200, 4, dtype=dtype) for name in "qkv"}
    ours, theirs = (
        outputs_and_gradients(ops.attention, tensors, {"mask": mask, "scale": scale, "engine": engine})
        for engine in (None, "reference")
    )
    assert_same(ours, theirs, tolerance=1e-3 if dtype == torch.float32 else 1e-11)


@pytest.mark.compile  # FlexAttention traces the mask
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(5, 2), Causal() & SlidingWindow(3, 9)], ids=repr)
def test_flex_attention_agrees(mask):
    q, k, v = randn(2, 4, 19, 8), randn(2, 2, 23, 8), randn(2, 2, 23, 8)
    theirs = flex_attention(
        q.float(),
        k.float(),
        v.float(),
        score_mod=lambda score, b, h, i, j: 2 * torch.tanh(score / 2) + h * (j - i) / 8,
        block_mask=create_block_mask(mask, None, None, 19, 23, device="cpu"),
        scale=0.3,
        enable_gqa=True,
    )
    bias = torch.arange(4)[:, None, None] * (torch.arange(23) - torch.arange(19)[:, None]) / 8
    ours = ops.attention(q.float(), k.float(), v.float(), mask=mask, scale=0.3, softcap=2.0, bias=bias)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"mask": Causal()},
        {"mask": SlidingWindow(2, 1)},
        {"mask": SlidingWindow(2, 0), "engine": "blocked"},
        {"mask": torch.tensor([[1, 0, 1, 1, 0]] * 3 + [[0] * 5] + [[1] * 5], dtype=torch.bool)},
        {"softcap": 1.5, "return_lse": True},
        {"mask": Causal(), "engine": "reference"},
    ],
    ids=str,
)
def test_gradients(options):
    inputs = [randn(2, 4, 5, 3), randn(2, 2, 5, 3), randn(2, 2, 5, 2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda q, k, v: ops.attention(q, k, v, **options), inputs)


def test_gradients_of_bias_and_sinks():
    inputs = [randn(1, 2, 4, 3), randn(1, 2, 4, 3), randn(1, 2, 4, 3), randn(2, 1, 4), randn(2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def with_sinks(q, k, v, bias, sinks):
        return ops.attention(q, k, v, mask=Causal(), bias=bias, sinks=sinks, return_lse=True)

    def with_bias(q, k, v, bias):
        return ops.attention(q, k, v, mask=Causal(), bias=bias)

    assert torch.autograd.gradcheck(with_sinks, inputs)
    assert torch.autograd.gradcheck(with_bias, inputs[:4])


def test_gradients_of_many_tiles():
    inputs = [randn(1, 1, 97, 1).requires_grad_() for _ in range(3)]
    window = SlidingWindow(3, 1)
    assert torch.autograd.gradcheck(
        lambda q, k, v: ops.attention(q, k, v, mask=window, engine="blocked"), inputs, fast_mode=True
    )


def test_sinks_take_their_share():
    q, k, v, sinks = randn(2, 4, 6, 3), randn(2, 2, 6, 3), randn(2, 2, 6, 3), randn(4)
    y, lse = ops.attention(q, k, v, mask=Causal(), return_lse=True)
    with_sinks, lse_with_sinks = ops.attention(q, k, v, mask=Causal(), sinks=sinks, return_lse=True)
    torch.testing.assert_close(with_sinks, y * torch.sigmoid(lse - sinks[:, None])[..., None])
    torch.testing.assert_close(lse_with_sinks, torch.logaddexp(lse, sinks[:, None].expand_as(lse)))


def test_parts_merge_by_their_log_sum_exp():
    q, k, v = randn(1, 2, 5, 3), randn(1, 2, 8, 3), randn(1, 2, 8, 3)
    y1, lse1 = ops.attention(q, k[:, :, :3], v[:, :, :3], return_lse=True)
    y2, lse2 = ops.attention(q, k[:, :, 3:], v[:, :, 3:], return_lse=True)
    share = torch.sigmoid(lse1 - lse2)[..., None]
    torch.testing.assert_close(share * y1 + (1 - share) * y2, ops.attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"return_lse": True}, {"softcap": 2.0}, {"bias": True}, {"engine": "reference"}],
    ids=str,
)
def test_a_query_that_is_allowed_nothing_gets_zeros(dtype, options):
    allowed = torch.ones(6, 6, dtype=torch.bool)
    allowed[2] = False
    q, k, v = (randn(2, 2, 6, 4, dtype=dtype).requires_grad_() for _ in range(3))
    if "bias" in options:
        options = {"bias": randn(6, 6, dtype=dtype).requires_grad_()}
    y = ops.attention(q, k, v, mask=allowed, **options)
    if isinstance(y, tuple):
        y, lse = y
        assert lse[:, :, 2].isneginf().all()
        assert lse[:, :, 3].isfinite().all()
    assert (y[:, :, 2] == 0).all()
    assert (y[:, :, 3] != 0).any()
    y.float().pow(2).sum().backward()
    assert (q.grad[:, :, 2] == 0).all()
    for tensor in (q, k, v):
        assert tensor.grad.isfinite().all()


def test_a_window_beyond_the_keys_gives_zeros():
    q, k = randn(1, 1, 200, 4).requires_grad_(), randn(1, 1, 90, 4).requires_grad_()
    y = ops.attention(q, k, k, mask=SlidingWindow(5, 0), engine="blocked")
    assert (y[:, :, 95:] == 0).all()
    assert (y[:, :, 94] != 0).any()
    y.sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{}, {"return_lse": True}, {"sinks": torch.tensor([1e4, -1e4])}], ids=str)
def test_extreme_logits_stay_finite(dtype, options):
    q = torch.tensor([[1.0], [-1.0], [0.0]]).to(dtype).expand(1, 2, 3, 1)
    k = torch.tensor([[1.0], [-1.0], [0.5]]).to(dtype).expand(1, 2, 3, 1)
    v = torch.eye(3, dtype=dtype).expand(1, 2, 3, 3)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    y = ops.attention(*leaves, scale=1e4, **options)
    y = y[0] if isinstance(y, tuple) else y
    wanted = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]]).expand(1, 2, 3, 3)
    if "sinks" in options:
        wanted = wanted * torch.tensor([[0.5, 0.5, 0.0], [1, 1, 1]])[None, :, :, None]
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=2e-3)
    y.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-5)]
)
@pytest.mark.parametrize(
    "options", [{}, {"mask": Causal()}, {"mask": SlidingWindow(20, 0)}, {"softcap": 2.0}], ids=str
)
def test_lower_precisions_are_close_and_keep_their_dtype(dtype, tolerance, options):
    q, k, v = (randn(2, 2, 200, 16, dtype=dtype) for _ in range(3))
    y = ops.attention(q, k, v, **options)
    assert y.dtype == dtype
    wanted = attention_reference(q.double(), k.double(), v.double(), **options)[0]
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=tolerance)


def test_a_wide_bias_is_not_rounded_to_narrow_queries():
    q = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16)
    v = torch.tensor([1.0, 0.0], dtype=torch.bfloat16).reshape(1, 1, 2, 1)
    y = ops.attention(
        q, q.expand(1, 1, 2, 4), v, bias=torch.tensor([1000.0, 1001.0])
    )  # one apart: 8 in bfloat16
    assert y.item() == pytest.approx(1 / (1 + math.e), abs=2e-3)


@pytest.mark.parametrize("mask", [None, SlidingWindow(10, 0)], ids=repr)
def test_autocast(mask):
    q, k = (torch.randn(1, 2, 200, 8, requires_grad=True) for _ in range(2))
    v = torch.randn(1, 2, 200, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.attention(q, k, v, mask=mask, bias=None if mask else torch.randn(200))
        capped, lse = ops.attention(q, k, v, softcap=5.0, return_lse=True)
    assert y.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    (y.float().sum() + capped.float().sum()).backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("engine", EXACT)
def test_layout_in_memory_does_not_matter(engine):
    tensors = [randn(2, 200, 3, 8) for _ in range(3)]
    strided = [tensor.transpose(1, 2)[..., ::2] for tensor in tensors]
    options = {"mask": SlidingWindow(9, 0), "engine": engine}
    y = ops.attention(*strided, **options)
    torch.testing.assert_close(y, ops.attention(*(tensor.contiguous() for tensor in strided), **options))


@pytest.mark.parametrize("engine", EXACT)
def test_dropout_drops_weights_and_scales_the_rest(engine):
    q, k = randn(4, 1, 128, 4), randn(4, 1, 128, 4)
    v = torch.eye(128, dtype=DOUBLE).expand(4, 1, 128, 128)
    options = {"mask": SlidingWindow(30, 0), "engine": engine}
    weights = ops.attention(q, k, v, **options)
    dropped = ops.attention(q, k, v, dropout_p=0.25, **options)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, weights / 0.75, 0.0))
    share = kept.sum() / (weights != 0).sum()
    assert 0.72 < share < 0.78


@pytest.mark.parametrize("engine", [None, *EXACT])
def test_no_output_sees_the_future(engine):
    q, k, v = (randn(1, 1, 200, 4) for _ in range(3))
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 100:] += 1
    changed_v[:, :, 100:] += 1
    options = {"mask": SlidingWindow(20, 0), "engine": engine}
    before, after = ops.attention(q, k, v, **options), ops.attention(q, changed_k, changed_v, **options)
    assert torch.equal(before[:, :, :100], after[:, :, :100])
    assert (before[:, :, 100:] != after[:, :, 100:]).any(-1).all()


@pytest.mark.compile
@pytest.mark.parametrize(
    "options",
    [
        {"mask": Causal()},
        {"mask": SlidingWindow(20, 0)},
        {"mask": Causal() & SlidingWindow(3, 3)},
        {"mask": SlidingWindow(20, 0), "engine": "reference"},
        {"softcap": 2.0, "return_lse": True},
    ],
    ids=str,
)
def test_compiles_without_a_break(options):
    tensors = {"q": randn(1, 2, 200, 4), "k": randn(1, 1, 200, 4), "v": randn(1, 1, 200, 4)}
    torch.compiler.reset()  # other tests count towards the limit of recompilations
    compiled = torch.compile(ops.attention, fullgraph=True, backend="aot_eager")
    assert_same(
        outputs_and_gradients(compiled, tensors, options),
        outputs_and_gradients(ops.attention, tensors, options),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_definition_takes_a_bias_in_more_digits_than_the_rest(dtype):
    q, k, v = (randn(1, 2, 9, 4, dtype=dtype) for _ in range(3))
    options = {"mask": Causal(), "bias": ops.Alibi.for_heads(2)}
    ours = ops.attention(q, k, v, **options, engine="reference")
    assert ours.dtype == dtype
    wanted = ops.attention(q.double(), k.double(), v.double(), **options, engine="reference")
    torch.testing.assert_close(ours.double(), wanted, rtol=0.05, atol=0.05)
