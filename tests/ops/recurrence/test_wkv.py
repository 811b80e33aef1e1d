from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.recurrence import kernels as scan_kernels
from gatework.ops.recurrence.wkv import wkv, wkv_reference, wkv_step
from tests.ops.recurrence.test_selective_scan import ENGINES, check_near, double, needs_numba, single


def draw(batch, length, channels, seed, *, keys=1.0, decay=1.0, started=True, dtype=torch.float64):
    """``k, v, w, u`` and, if ``started``, a state, all of them asking for gradients."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=dtype)

    inputs = [keys * normal(batch, length, channels), normal(batch, length, channels)]
    inputs += [-decay * torch.rand(channels, generator=gen, dtype=dtype), normal(channels)]
    inputs += [normal(batch, channels), keys * normal(batch, channels)] if started else []
    return [tensor.requires_grad_() for tensor in inputs]


def results(function, inputs, **options):
    """Outputs, the state, and the gradients of a random sum of them."""
    y, state = function(*inputs[:4], initial_state=tuple(inputs[4:]) or None, **options)
    gen = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64) + 0 * sum(tensor.sum() for tensor in inputs)
    for tensor in (y, *state):
        weights = torch.randn(tensor.shape, generator=gen, dtype=torch.float64)
        if tensor.isfinite().all():  # the log-weight of nothing is not
            total = total + (tensor * weights).sum()
    return [y, *state, *torch.autograd.grad(total, inputs)]


def test_the_reference_is_the_mean_of_the_paper():
    k, v, w, u = (tensor.detach() for tensor in draw(1, 9, 2, 0, started=False))
    y, (mean, log_weight) = wkv_reference(k, v, w, u)
    for c in range(2):
        for t in range(10):
            weights = [((t - 1 - i) * w[c] + k[0, i, c]).exp() for i in range(t)]
            if t:
                past = sum(weight * v[0, i, c] for i, weight in enumerate(weights)) / sum(weights)
            if t == 9:
                torch.testing.assert_close(mean[0, c], past)
                torch.testing.assert_close(log_weight[0, c], sum(weights).log())
            else:
                weights.append((u[c] + k[0, t, c]).exp())
                expected = sum(weight * v[0, i, c] for i, weight in enumerate(weights)) / sum(weights)
                torch.testing.assert_close(y[0, t, c], expected)


SIZES = {
    "batch": st.integers(0, 2),
    "length": st.integers(0, 20) | st.integers(62, 67),
    "chunk_size": st.none() | st.integers(1, 9),
    "keys": st.sampled_from([0.1, 1.0, 30.0]),
    "decay": st.sampled_from([0.0, 0.1, 3.0, 1e3]),
    "started": st.booleans(),
    "seed": st.integers(0, 99),
}


@settings(max_examples=80, deadline=None)
@given(channels=st.integers(1, 4), **SIZES)
def test_fast_path_equals_definition(batch, length, channels, chunk_size, keys, decay, started, seed):
    inputs = draw(batch, length, channels, seed, keys=keys, decay=decay, started=started)
    ours = results(wkv, inputs, chunk_size=chunk_size)
    for result, expected in zip(ours, results(wkv_reference, inputs), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-9)


@needs_numba
@settings(max_examples=60, deadline=None)
@given(channels=st.integers(1, 4) | st.integers(31, 33) | st.integers(63, 70), **SIZES)
def test_kernels_equal_the_definition(batch, length, channels, chunk_size, keys, decay, started, seed):
    inputs = single(draw(batch, length, channels, seed, keys=keys, decay=decay, started=started))
    ours = results(wkv, inputs, chunk_size=chunk_size, engine="chunked-numba")
    theirs = results(wkv_reference, double(inputs))
    for result, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result.double(), expected.double(), rtol=1e-3, atol=2e-4 * max(1, keys))


@needs_numba
def test_two_threads_give_the_bits_of_one():
    inputs = single(draw(2, 900, 130, 0))
    assert inputs[0].numel() > 200_000  # below, one thread does it all
    one = results(wkv, inputs)
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(one, results(wkv, inputs), strict=True))


@pytest.mark.parametrize("started", [True, False])
def test_gradients(started):
    def function(k, v, w, u, *state):
        y, after = wkv(k, v, w, u, initial_state=state or None, chunk_size=3)
        return y, *after

    assert torch.autograd.gradcheck(function, draw(1, 7, 2, 0, started=started))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck itself
@pytest.mark.parametrize("engine", ENGINES)
def test_the_operator_keeps_the_rules(engine):
    inputs = single(draw(2, 9, 3, 0))
    torch.library.opcheck(torch.ops.gatework.wkv.default, (*inputs, 4, engine == "chunked-numba"))


@pytest.mark.parametrize("engine", ENGINES)
def test_any_chunking_continues(engine):
    k, v, w, u = (tensor.detach() for tensor in single(draw(2, 150, 4, 1, started=False)))
    whole, final = wkv(k, v, w, u, engine=engine)
    parts, start, state = [], 0, None
    for size in (0, 1, 2, 3, 64, 0, 65, 15):
        piece = slice(start, start + size)
        y, state = wkv(k[:, piece], v[:, piece], w, u, initial_state=state, engine=engine)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    for ours, theirs in zip(state, final, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_steps_equal_the_definition():
    k, v, w, u, *state = draw(2, 5, 4, 2)
    whole, final = wkv_reference(k, v, w, u, initial_state=tuple(state))
    for t in range(5):
        y, state = wkv_step(k[:, t], v[:, t], w, u, tuple(state))
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(tuple(state), final)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_output_sees_the_future(engine):
    k, v, w, u = (tensor.detach() for tensor in single(draw(1, 100, 3, 3, decay=0.1, started=False)))
    before, _ = wkv(k, v, w, u, engine=engine)
    k, v = k.clone(), v.clone()
    k[:, 70:] += 1
    v[:, 70:] -= 1
    after, _ = wkv(k, v, w, u, engine=engine)
    assert torch.equal(after[:, :70], before[:, :70])
    assert (after[:, 70:] - before[:, 70:]).abs().min() > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("keys", "decay"), [(1e2, 0.1), (1.0, 1e4), (1e4, 1e4), (1e4, 0.0), (1e30, 1e30)])
def test_large_keys_and_strong_decay_stay_finite(engine, keys, decay):
    inputs = single(draw(1, 100, 4, 4, keys=keys, decay=decay, started=False))
    ours = results(wkv, inputs, engine=engine)
    assert all(tensor.isfinite().all() for tensor in ours)
    check_near(
        ours[:2], results(wkv_reference, double(inputs))[:2], 1e-6 * max(keys, 10) if keys < 1e30 else 2
    )
    assert ours[0].abs().max() <= inputs[1].abs().max()  # means of values


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("decay", "slope"), [(1e-4, 0.0), (0.6, 0.0), (0.6, -0.5), (0.3, -0.2), (1.0, -0.8)])
def test_a_long_memory_keeps_its_mean(engine, decay, slope):
    """Weights that decay slowly; keys that fall beside them, so that no token takes over."""
    k, v, _, u = draw(1, 1500, 3, 5, started=False)
    k = (0.3 * k + slope * torch.arange(1500)[:, None]).detach()
    w = torch.tensor([-decay, -decay / 2, -decay / 3])
    inputs = single([k, v, w, u])
    check_near(results(wkv, inputs, engine=engine), results(wkv_reference, double(inputs)), 2e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(engine, dtype):
    inputs = [tensor.detach().to(dtype) for tensor in draw(1, 80, 4, 5, started=False)]
    wide = [tensor.float() for tensor in inputs]
    y, state = wkv(*inputs, engine=engine)
    expected, expected_state = wkv(*wide, engine=engine)
    assert y.dtype == dtype
    assert state[0].dtype == state[1].dtype == torch.float32
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(state, expected_state)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = wkv(*wide, engine=engine)
    assert torch.equal(under_autocast, expected)


@pytest.mark.compile
@pytest.mark.parametrize("engine", ENGINES)
def test_one_graph(engine):
    torch.compiler.reset()
    inputs = single(draw(1, 40, 4, 6))

    def function(*inputs):
        y, state = wkv(*inputs[:4], initial_state=tuple(inputs[4:]), engine=engine)
        return y, *state

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*inputs)[0].sum(), inputs),
        torch.autograd.grad(function(*inputs)[0].sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.bad_input
def test_without_numba_the_chunked_form_computes(monkeypatch):
    inputs = single(draw(1, 10, 3, 0))
    expected = results(wkv, inputs, engine="chunked-torch")
    monkeypatch.setattr(scan_kernels, "is_available", lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(results(wkv, inputs), expected, strict=True))
    with pytest.raises(ValueError, match="engine 'chunked-numba' needs numba, which is not installed"):
        results(wkv, inputs, engine="chunked-numba")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(5, 3)}, r"k must have shape \(batch, length, channels\), got \(5, 3\)"),
        ({"v": torch.zeros(1, 4, 3)}, r"v must have shape \(1, 5, 3\), got \(1, 4, 3\)"),
        ({"w": torch.zeros(4)}, r"w must have shape \(3,\), got \(4,\)"),
        ({"u": torch.zeros(1, 3)}, r"u must have shape \(3,\), got \(1, 3\)"),
        (
            {"initial_state": (torch.zeros(1, 3), torch.zeros(2, 3))},
            r"initial_state\[1\] must have shape \(1, 3\), got \(2, 3\)",
        ),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"engine": "cuda"}, "engine must be one of reference, .*chunked-numba, got 'cuda'"),
        (
            {"k": torch.zeros(1, 5, 3).double(), "engine": "chunked-numba"},
            "computes float32 on a CPU, got torch.float64",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    tensors = {"k": torch.zeros(1, 5, 3), "v": torch.zeros(1, 5, 3), "w": torch.zeros(3), "u": torch.zeros(3)}
    with pytest.raises(ValueError, match=message):
        wkv(**(tensors | change))
