import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework import natten
from gatework.ops.vision.neighborhood import neighborhood_reference
from gatework.ops.vision.neighborhood_halves import crop_bias, neighborhood_logits, neighborhood_weighted_sum
from gatework.ops.vision.neighborhood_windows import window_spec
from tests.ops.vision.neighborhood_cases import DOUBLE, outputs_and_gradients, windows

QK = {n: getattr(natten, f"na{n}d_qk") for n in (1, 2, 3)}
AV = {n: getattr(natten, f"na{n}d_av") for n in (1, 2, 3)}
FUSED = {n: getattr(natten, f"na{n}d_fused") for n in (1, 2, 3)}


def randn(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def close(ours, wanted, atol=1e-11):  # float64, sums in another order
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)


def axis_taps(position, length, window, dilation, is_causal):
    """The keys of a query on one axis in the order of its taps; None where a causal axis has no more."""
    first, place = position % dilation, position // dilation
    tokens = len(range(first, length, dilation))
    if is_causal:
        start = max(place - window + 1, 0)
        return [first + (start + t) * dilation if start + t <= place else None for t in range(window)]
    start = min(max(place - window // 2, 0), tokens - window)
    return [first + (start + t) * dilation for t in range(window)]


def queries_and_taps(case):
    """Every query with the list of its taps' keys, tuples or None."""
    for query in itertools.product(*map(range, case.grid)):
        axes = zip(query, case.grid, case.kernel_size, case.dilation, case.is_causal, strict=True)
        taps = itertools.product(*(axis_taps(*axis) for axis in axes))
        yield query, [None if None in tap else tap for tap in taps]


def logits_by_loops(case, query, key, rpb=None, additional_keys=None):
    rows = []
    for at, taps in queries_and_taps(case):
        q = query[(slice(None), slice(None), *at)]
        row = []
        for tap in taps:
            if tap is None:
                row.append(torch.full(q.shape[:2], -torch.inf, dtype=q.dtype))
                continue
            dot = (q * key[(slice(None), slice(None), *tap)]).sum(-1)
            if rpb is not None:
                offset = zip(tap, at, case.dilation, case.kernel_size, strict=True)
                dot = dot + rpb[(slice(None), *((j - i) // d + w - 1 for j, i, d, w in offset))]
            row.append(dot)
        if additional_keys is not None:
            row += [(q * extra).sum(-1) for extra in additional_keys.unbind(2)]
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, 2).unflatten(2, case.grid)


def sums_by_loops(case, attn, value, additional_values=None):
    rows = []
    for at, taps in queries_and_taps(case):
        weights = attn[(slice(None), slice(None), *at)]
        row = torch.zeros_like(value[(slice(None), slice(None), *at)])
        for number, tap in enumerate(taps):
            if tap is not None:
                row = row + weights[..., number, None] * value[(slice(None), slice(None), *tap)]
        if additional_values is not None:
            for number, extra in enumerate(additional_values.unbind(2), len(taps)):
                row = row + weights[..., number, None] * extra
        rows.append(row)
    return torch.stack(rows, 2).unflatten(2, case.grid)


sizes = {
    "batch": st.integers(0, 2),
    "heads": st.integers(1, 2),
    "dim": st.integers(1, 4),
    "extra": st.sampled_from([None, 0, 2]),
}


@settings(max_examples=12, deadline=None)
@given(case=windows(odd=True), bias=st.booleans(), **sizes)
def test_logits_are_the_loops(case, bias, batch, heads, dim, extra):
    named = {
        "query": randn(batch, heads, *case.grid, dim),
        "key": randn(batch, heads, *case.grid, dim, seed=1),
    }
    if extra is not None:
        named["additional_keys"] = randn(batch, heads, extra, dim, seed=2)
    if bias and not any(case.is_causal):
        named["rpb"] = randn(heads, *(2 * window - 1 for window in case.kernel_size), seed=3)

    def finite(function, *first, **named):
        logits = function(*first, **named)
        hidden = logits.isneginf()
        return logits.masked_fill(hidden, 0.0), hidden.double()

    def ours(query, key, **named):
        options = {"kernel_size": case.kernel_size, "dilation": case.dilation, "is_causal": case.is_causal}
        return finite(QK[len(case.grid)], query, key, **options, **named)

    def loops(**named):
        return finite(logits_by_loops, case, **named)

    results = zip(outputs_and_gradients(ours, named), outputs_and_gradients(loops, named), strict=True)
    for one, other in results:
        close(one, other if other is not None else torch.zeros_like(one))


@settings(max_examples=12, deadline=None)
@given(case=windows(odd=True), **sizes)
def test_sums_are_the_loops_for_any_weights(case, batch, heads, dim, extra):
    taps = math.prod(case.kernel_size) + (extra or 0)
    named = {
        "attn": randn(batch, heads, *case.grid, taps),
        "value": randn(batch, heads, *case.grid, dim, seed=1),
    }
    if extra is not None:
        named["additional_values"] = randn(batch, heads, extra, dim, seed=2)

    def ours(attn, value, **named):
        options = {"kernel_size": case.kernel_size, "dilation": case.dilation, "is_causal": case.is_causal}
        return AV[len(case.grid)](attn, value, **options, **named)

    def loops(**named):
        return sums_by_loops(case, **named)

    results = zip(outputs_and_gradients(ours, named), outputs_and_gradients(loops, named), strict=True)
    for one, other in results:
        close(one, other if other is not None else torch.zeros_like(one))


def test_causal_taps_by_hand():
    q, k = torch.ones(1, 1, 5, 1), torch.arange(5.0).reshape(1, 1, 5, 1)
    logits = natten.na1d_qk(q, k, 3, is_causal=True)[0, 0]
    assert logits[0].tolist() == [0.0, -math.inf, -math.inf]
    assert logits[1].tolist() == [0.0, 1.0, -math.inf]
    assert logits[4].tolist() == [2.0, 3.0, 4.0]
    infinite = torch.full((1, 1, 5, 3), math.nan)
    infinite[0, 0, 4] = 1.0
    assert natten.na1d_av(infinite, k, 3, is_causal=True)[0, 0, 4].item() == 9.0


@settings(max_examples=12, deadline=None)
@given(case=windows(odd=True), extra=st.sampled_from([None, 2]))
def test_the_halves_make_neighborhood_attention(case, extra):
    inputs = [randn(2, *case.grid, 2, 3, seed=seed) for seed in range(3)]
    more = [None if extra is None else randn(2, extra, 2, 3, seed=seed) for seed in (3, 4)]
    wanted, lse = neighborhood_reference(
        *inputs,
        case.kernel_size,
        1,
        case.dilation,
        case.is_causal,
        additional_keys=more[0],
        additional_values=more[1],
    )
    q, k, v = (tensor.movedim(-2, 1) for tensor in inputs)
    more_k, more_v = (None if tensor is None else tensor.transpose(1, 2) for tensor in more)
    n = len(case.grid)
    logits = QK[n](q * 3**-0.5, k, case.kernel_size, case.dilation, more_k, case.is_causal)
    y = AV[n](logits.softmax(-1), v, case.kernel_size, case.dilation, more_v, case.is_causal)
    close(y.movedim(1, -2), wanted)
    close(logits.logsumexp(-1).movedim(1, -1), lse)
    fused = FUSED[n](
        *inputs, case.kernel_size, case.dilation, case.is_causal, None, None, *more, {"op": None}
    )
    close(fused, wanted)
    if not any(case.is_causal):
        rpb = torch.full((2, *(2 * window - 1 for window in case.kernel_size)), 0.5, dtype=DOUBLE)
        biased = FUSED[n](*inputs, case.kernel_size, case.dilation, rpb=rpb, scale=0.3)
        close(biased, FUSED[n](*inputs, case.kernel_size, case.dilation, scale=0.3))  # one constant for all
        rpb = randn(*rpb.shape, seed=5)
        logits = QK[n](q * 0.3, k, case.kernel_size, case.dilation, more_k, rpb=rpb)
        y = AV[n](logits.softmax(-1), v, case.kernel_size, case.dilation, more_v)
        fused = FUSED[n](*inputs, case.kernel_size, case.dilation, False, rpb, 0.3, *more)
        close(fused, y.movedim(1, -2))


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_any_order(is_causal):
    q, k = (randn(1, 1, 4, 2, seed=seed).requires_grad_() for seed in range(2))
    attn = randn(1, 1, 4, 3, seed=2).requires_grad_()

    def logits(q, k):
        return natten.na1d_qk(q, k, 3, is_causal=is_causal).clamp(min=-99)

    def sums(attn, v):
        return natten.na1d_av(attn, v, 3, is_causal=is_causal)

    for function, leaves in ((logits, (q, k)), (sums, (attn, k))):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


def test_memory_is_that_of_inputs_and_results():
    q, k, v = (randn(1, 2, 20, 20, 16, seed=seed).requires_grad_() for seed in range(3))
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = natten.na2d_qk(q, k, 7)
        natten.na2d_av(logits, v, 7)
    assert sum(kept.values()) <= 3 * q.nbytes + 2 * logits.nbytes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 6e-2)])
def test_half_precisions(dtype, tolerance):
    q, k, v = (randn(1, 2, 6, 6, 8, seed=seed, dtype=dtype) for seed in range(3))
    rpb = randn(2, 5, 5, dtype=dtype)
    logits = natten.na2d_qk(q, k, 3, rpb=rpb)
    y = natten.na2d_av(logits.softmax(-1), v, 3)
    assert logits.dtype == y.dtype == dtype
    wanted = natten.na2d_qk(q.double(), k.double(), 3, rpb=rpb.double())
    close(logits.double(), wanted, tolerance)
    close(y.double(), natten.na2d_av(wanted.softmax(-1), v.double(), 3), tolerance)


def test_autocast():
    q, k, v = (randn(1, 2, 6, 6, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        weights = natten.na2d_qk(q, k, 3, additional_keys=k[:, :, 0]).softmax(-1)
        y = natten.na2d_av(weights.float(), v, 3, additional_values=v[:, :, 0])
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, natten.na2d_av(weights, v, 3, additional_values=v[:, :, 0]))


@pytest.mark.parametrize("n", [1, 2])
def test_the_names_of_other_versions(n):
    grid = (8, 9)[:n]
    q, k, v = (randn(2, 3, *grid, 4, seed=seed) for seed in range(3))
    rpb = randn(3, *[5] * n, seed=4)
    dqkrpb, dav = getattr(natten, f"natten{n}dqkrpb"), getattr(natten, f"natten{n}dav")
    with_bias = getattr(natten, f"na{n}d_qk_with_bias")
    wanted = QK[n](q, k, 3, 2, rpb=rpb)
    for logits in (
        with_bias(q, k, rpb, 3, 2),
        dqkrpb(q, k, rpb, 3, 2),
        dqkrpb(q, k, rpb, 2),
        dqkrpb(q, k, rpb, kernel_size=3, dilation=2),
        dqkrpb(q, k, rpb, dilation=2),
    ):
        assert torch.equal(logits, wanted)
    assert torch.equal(
        with_bias(q, k, None, 3, 2, k[:, :, 0] if n == 2 else k),
        QK[n](q, k, 3, 2, k[:, :, 0] if n == 2 else k),
    )
    attn = wanted.softmax(-1)
    for y in (dav(attn, v, 3, 2), dav(attn, v, 2), dav(attn, v, dilation=2, kernel_size=3)):
        assert torch.equal(y, AV[n](attn, v, 3, 2))


def test_even_windows_and_smaller_biases():
    # Where a grid is too small the modules cut a window, to an even one perhaps.
    spec = window_spec(1, 4).on((4,))
    rpb = torch.arange(13.0).reshape(1, 13)
    assert crop_bias(rpb, (4,))[0].tolist() == list(range(3, 10))
    q, k = torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1)
    logits = neighborhood_logits(q, k, spec, rpb=crop_bias(rpb, (4,)))
    offsets = torch.arange(4)[None, :] - torch.arange(4)[:, None]
    assert torch.equal(logits[0, 0], 6.0 + offsets)
    assert neighborhood_weighted_sum(logits, k + 1, spec)[0, 0, 0, 0] == 30.0


Q = torch.zeros(1, 2, 5, 6, 4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: natten.na2d_qk(Q, Q, 4),
            "kernel_size must be odd and at least 3 in this older function, got 4",
        ),
        (
            lambda: natten.na2d_qk(Q, Q, -1),
            "kernel_size must be odd and at least 3 in this older fun.* got -1",
        ),
        (lambda: natten.na2d_qk(Q, Q, 7), r"at most the input's 5 tokens along axis 0, got 7 \* 1"),
        (lambda: natten.na2d_qk(Q, Q, 3, 2), r"at most the input's 5 tokens along axis 0, got 3 \* 2"),
        (lambda: natten.na2d_qk(Q[0], Q, 3), r"query must be floating point of shape \(batch, heads, 2 axes"),
        (
            lambda: natten.na2d_qk(Q, Q[..., :3], 3),
            r"key must have shape \(1, 2, 5, 6, 4\), got \(1, 2, 5, 6, 3\)",
        ),
        (
            lambda: natten.na2d_qk(Q, Q.double(), 3),
            r"key must have the dtype of .* torch\.float32, got torch\.f",
        ),
        (lambda: natten.na2d_qk(Q, Q, 3, 1, Q), r"additional_keys must have shape \(1, 2, 'extra', 4\), got"),
        (
            lambda: natten.na2d_qk(Q, Q, 3, rpb=Q[0, :, :, :5, 0].long()),
            r"rpb must be floating .*=\(2, 5, 5\), got torch\.int64 of shape \(2, 5, 5\)",
        ),
        (
            lambda: natten.na2d_qk(Q, Q, 3, rpb=Q[0, :, :4, :5, 0]),
            r"rpb must .*=\(2, 5, 5\), got .*\(2, 4, 5\)",
        ),
        (lambda: natten.na2d_av(Q, Q, 3), r"attn must have shape \(1, 2, 5, 6, 9\), got \(1, 2, 5, 6, 4\)"),
        (lambda: natten.na2d_av(Q, Q[0], 3), r"value must be floating point of shape \(batch, heads, 2 axes"),
        (
            lambda: natten.na2d_av(Q, Q, 3, 1, Q),
            r"additional_values must have shape \(1, 2, 'extra', 4\), got",
        ),
        (lambda: natten.natten2dqkrpb(Q, Q, Q[0, :, :, :5, 0], 5, 1), r"rpb must be .*=\(2, 9, 9\), got"),
        (
            lambda: natten.natten2dqkrpb(Q, Q, Q[0, :, :, :5, 0], 3, 1, 1),
            r"sizes must be kernel_size and dil",
        ),
        (lambda: natten.natten2dav(Q, Q, 1, dilation=2), "dilation must be given once, got 1 and 2"),
        (
            lambda: natten.na2d_fused(Q, Q, Q, 3, rpb=Q, additional_keys=Q),
            "go together, got additional_values=N",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.bad_input
def test_a_causal_bias_is_refused():
    with pytest.raises(NotImplementedError, match=r"rpb cannot be combined with is_causal=\(True, True\)"):
        natten.na2d_qk(Q, Q, 3, is_causal=True, rpb=torch.zeros(2, 5, 5))
