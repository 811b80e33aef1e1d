from __future__ import annotations

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.recurrence import kernels as scan_kernels
from gatework.ops.recurrence.selective_scan import (
    front,
    operator,
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)

needs_numba = pytest.mark.skipif(not scan_kernels.is_available(), reason="numba is not installed")
ENGINES = [pytest.param("chunked-numba", marks=needs_numba), "chunked-torch"]


def draw(batch, length, channels, states, seed, *, step=1.0, dtype=torch.float64):
    """``x, dt, A, B, C, D`` and an initial state, all of them asking for gradients."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=dtype)

    dt = step * torch.rand(batch, length, channels, generator=gen, dtype=dtype)
    rates = -3 * torch.rand(channels, states, generator=gen, dtype=dtype)
    tokens = [normal(batch, length, width) for width in (channels, states, states)]
    inputs = [tokens[0], dt, rates, *tokens[1:], normal(channels), normal(batch, channels, states)]
    return [tensor.requires_grad_() for tensor in inputs]


def results(function, inputs, **options):
    """Outputs, last state, and the gradients of a random sum of them."""
    *arguments, state = inputs
    outputs = function(*arguments, initial_state=state, **options)
    gen = torch.Generator().manual_seed(7)
    weights = [torch.randn(tensor.shape, generator=gen, dtype=torch.float64) for tensor in outputs]
    total = sum((tensor * weight).sum() for tensor, weight in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(total, inputs, materialize_grads=True, allow_unused=True)]


def single(inputs):
    return [tensor.detach().float().requires_grad_() for tensor in inputs]


def double(inputs):
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


def check_near(ours, theirs, tolerance):
    """Compare relative to the largest number of each tensor."""
    for index, (result, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert result.shape == expected.shape
        if expected.numel():
            error = (result - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
            assert error < tolerance, f"result {index}: {error:.1e}"


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=st.integers(0, 20) | st.integers(30, 35),
    channels=st.integers(1, 5),
    states=st.integers(1, 4),
    chunk_size=st.none() | st.integers(1, 9),
    step=st.sampled_from([0.0, 0.1, 3.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_definition(batch, length, channels, states, chunk_size, step, seed):
    inputs = draw(batch, length, channels, states, seed, step=step)
    ours = results(selective_scan, inputs, chunk_size=chunk_size)
    theirs = results(selective_scan_reference, inputs)
    for result, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@needs_numba
@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=st.integers(0, 20) | st.integers(62, 67),
    channels=st.integers(1, 5) | st.integers(31, 33) | st.integers(63, 70),
    states=st.integers(1, 5),
    chunk_size=st.none() | st.integers(1, 9),
    step=st.sampled_from([0.0, 0.1, 3.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_kernels_equal_the_definition(batch, length, channels, states, chunk_size, step, seed):
    inputs = single(draw(batch, length, channels, states, seed, step=step))
    ours = results(selective_scan, inputs, chunk_size=chunk_size, engine="chunked-numba")
    check_near(ours, results(selective_scan_reference, double(inputs)), 1e-5)


def test_many_chunks_are_walked_back_some_at_a_time(monkeypatch):
    monkeypatch.setattr(operator.chunked, "_REMEMBERED", 300)
    inputs = draw(2, 45, 3, 2, 0)
    ours = results(selective_scan, inputs, chunk_size=4)
    check_near(ours, results(selective_scan_reference, inputs), 1e-12)


@needs_numba
def test_two_threads_give_the_bits_of_one():
    inputs = single(draw(2, 60, 130, 16, 0))
    assert inputs[0].numel() * 16 > 200_000  # below, one thread does it all
    one = results(selective_scan, inputs)
    torch.set_num_threads(2)
    two = results(selective_scan, inputs)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients():
    def function(x, dt, A, B, C, D, state):
        return selective_scan(x, dt, A, B, C, D, initial_state=state, chunk_size=3)

    assert torch.autograd.gradcheck(function, draw(1, 7, 2, 3, 0))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # in opcheck itself
@pytest.mark.parametrize("engine", ENGINES)
def test_the_operator_keeps_the_rules(engine):
    x, dt, a, b, c, _, state = single(draw(2, 9, 3, 2, 0))
    torch.library.opcheck(
        torch.ops.gatework.selective_scan.default, (x, dt, a, b, c, state, 4, engine == "chunked-numba")
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_any_chunking_continues(engine):
    x, dt, A, B, C, D, state = single(draw(2, 150, 4, 3, 1))
    whole, final = selective_scan(x, dt, A, B, C, D, initial_state=state, engine=engine)
    parts, start = [], 0
    for size in (1, 2, 3, 64, 0, 65, 15):
        piece = slice(start, start + size)
        tokens = (tensor[:, piece] for tensor in (x, dt))
        weights = (tensor[:, piece] for tensor in (B, C))
        y, state = selective_scan(*tokens, A, *weights, D, initial_state=state, engine=engine)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-5)


def test_steps_equal_the_definition():
    x, dt, A, B, C, D, state = draw(2, 5, 4, 3, 2)
    whole, final = selective_scan_reference(x, dt, A, B, C, D, initial_state=state)
    for t in range(5):
        y, state = selective_scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state)
        torch.testing.assert_close(y, whole[:, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_output_sees_the_future(engine):
    x, dt, A, B, C, D, _ = (tensor.detach() for tensor in single(draw(1, 100, 3, 2, 3)))
    before, _ = selective_scan(x, dt, A, B, C, D, engine=engine)
    x, dt, B, C = (tensor.clone() for tensor in (x, dt, B, C))
    for tensor in (x, dt, B, C):
        tensor[:, 70:] += 1
    after, _ = selective_scan(x, dt, A, B, C, D, engine=engine)
    assert torch.equal(after[:, :70], before[:, :70])
    assert (after[:, 70:] - before[:, 70:]).abs().min() > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [1e2, 1e6, 1e30])
def test_strong_decay_underflows_and_never_overflows(engine, step):
    x, dt, A, B, C, D, state = single(draw(1, 100, 4, 3, 4, step=step))
    inputs = [(x / step).detach().requires_grad_(), dt, A, B, C, D, state]
    ours = results(selective_scan, inputs, engine=engine)
    assert all(tensor.isfinite().all() for tensor in ours)
    check_near(ours[:2], results(selective_scan_reference, double(inputs))[:2], 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_slow_decay_keeps_what_it_read(engine):
    inputs = single(draw(1, 2000, 2, 3, 5, step=1e-4))
    check_near(
        results(selective_scan, inputs, engine=engine),
        results(selective_scan_reference, double(inputs)),
        2e-5,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(engine, dtype):
    inputs = [tensor.detach().to(dtype) for tensor in draw(1, 80, 4, 3, 5)]
    wide = [tensor.float() for tensor in inputs]
    y, state = selective_scan(*inputs[:6], initial_state=inputs[6], engine=engine)
    expected, expected_state = selective_scan(*wide[:6], initial_state=wide[6], engine=engine)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(state, expected_state)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = selective_scan(*wide[:6], initial_state=wide[6], engine=engine)
    assert torch.equal(under_autocast, expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_states_are_kept_once_per_chunk(engine):
    x, dt, A, B, C, D, _ = single(draw(1, 640, 8, 16, 0))
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(x, dt, A, B, C, D, chunk_size=64, engine=engine)
    assert max(kept) == max(x.numel(), B.numel())
    assert sum(kept) < 8 * x.numel()  # all states would be 16


def test_strides_do_not_matter():
    inputs = draw(2, 33, 3, 2, 0)
    turned = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in inputs[:5]]
    ours = results(selective_scan, [*turned, *inputs[5:]])
    check_near(ours, results(selective_scan_reference, inputs), 1e-12)


@pytest.mark.compile
@pytest.mark.parametrize("engine", ENGINES)
def test_one_graph(engine):
    torch.compiler.reset()
    inputs = single(draw(1, 40, 4, 3, 6))

    def function(*inputs):
        return selective_scan(*inputs[:6], initial_state=inputs[6], engine=engine)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*inputs), function(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*inputs)[0].sum(), inputs),
        torch.autograd.grad(function(*inputs)[0].sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


# --- engines ---


@pytest.mark.bad_input
def test_without_numba_the_chunked_form_computes(monkeypatch):
    inputs = single(draw(1, 10, 3, 2, 0))
    expected = results(selective_scan, inputs, engine="chunked-torch")
    monkeypatch.setattr(scan_kernels, "is_available", lambda: False)
    assert all(torch.equal(a, b) for a, b in zip(results(selective_scan, inputs), expected, strict=True))
    with pytest.raises(ValueError, match="engine 'chunked-numba' needs numba, which is not installed"):
        results(selective_scan, inputs, engine="chunked-numba")


@pytest.mark.bad_input
def test_engines_say_what_they_cannot_do():
    inputs = draw(1, 10, 3, 2, 0)
    with pytest.raises(
        ValueError, match=r"'chunked-numba' computes float32 on a CPU, got torch.float64 on cpu"
    ):
        results(selective_scan, inputs, engine="chunked-numba")
    with pytest.raises(ValueError, match=r"engine must be one of reference, .*mamba_ssm, got 'cuda'"):
        results(selective_scan, inputs, engine="cuda")
    with pytest.raises(ValueError, match="'mamba_ssm' needs the package mamba-ssm, which is not installed"):
        results(selective_scan, inputs, engine="mamba_ssm")


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the authors' package, which no test machine has; return what its function is told."""
    seen = []

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        seen.append({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "plain": (z, delta_bias)})
        assert not delta_softplus
        assert return_last_state
        y, state = selective_scan_reference(u.mT, delta.mT, A, B.mT, C.mT, D)
        return y.mT.to(u.dtype), state

    module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        package = types.ModuleType(name)
        package.__spec__ = types.SimpleNamespace(name=name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    front._mamba_ssm.cache_clear()
    yield seen
    front._mamba_ssm.cache_clear()


def test_the_authors_engine_gets_their_layout(calls):
    x, dt, A, B, C, D, _ = single(draw(2, 9, 3, 4, 0))
    y, state = selective_scan(x, dt, A, B, C, D, engine="mamba_ssm")
    expected, expected_state = selective_scan_reference(x, dt, A, B, C, D)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)
    (told,) = calls
    assert told["u"].shape == told["delta"].shape == (2, 3, 9)
    assert told["A"].shape == (3, 4)
    assert told["B"].shape == told["C"].shape == (2, 4, 9)
    assert told["plain"] == (None, None)
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.usefixtures("calls")
def test_the_authors_engine_loses_no_gradient_silently():
    x, dt, A, B, C, D, _ = single(draw(1, 4, 3, 2, 0))
    _, state = selective_scan(x, dt, A, B, C, D, engine="mamba_ssm")
    with pytest.raises(RuntimeError, match="'mamba_ssm' gives no gradient of its last state"):
        state.sum().backward()


@pytest.mark.bad_input
@pytest.mark.usefixtures("calls")
def test_the_authors_engine_says_what_it_cannot_do():
    inputs = draw(1, 4, 3, 2, 0)
    with pytest.raises(ValueError, match="'mamba_ssm' takes no initial_state"):
        results(selective_scan, single(inputs), engine="mamba_ssm")
    with pytest.raises(
        ValueError, match=r"'mamba_ssm' computes float32, bfloat16 and float16, got torch.float64"
    ):
        selective_scan(*inputs[:6], engine="mamba_ssm")


def test_the_authors_engine_runs_half_precision(calls):
    x, dt, A, B, C, D, _ = (tensor.detach() for tensor in single(draw(1, 4, 3, 2, 0)))
    y, state = selective_scan(x.bfloat16(), dt, A, B, C, D, engine="mamba_ssm")
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    (told,) = calls
    assert {told[name].dtype for name in ("u", "delta", "B", "C")} == {torch.bfloat16}
    assert {told[name].dtype for name in ("A", "D")} == {torch.float32}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 3)}, r"x must have shape \(batch, length, channels\), got \(5, 3\)"),
        ({"dt": torch.zeros(1, 5, 4)}, r"dt must have shape \(1, 5, 3\), got \(1, 5, 4\)"),
        ({"A": torch.zeros(4, 2)}, r"A must have shape \(channels=3, states\), got \(4, 2\)"),
        ({"B": torch.zeros(1, 5, 3)}, r"B must have shape \(1, 5, 2\), got \(1, 5, 3\)"),
        ({"C": torch.zeros(2, 5, 2)}, r"C must have shape \(1, 5, 2\), got \(2, 5, 2\)"),
        ({"D": torch.zeros(2)}, r"D must have shape \(3,\), got \(2,\)"),
        (
            {"initial_state": torch.zeros(1, 2, 3)},
            r"initial_state must have shape \(1, 3, 2\), got \(1, 2, 3\)",
        ),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(change, message):
    tensors = {
        "x": torch.zeros(1, 5, 3),
        "dt": torch.zeros(1, 5, 3),
        "A": torch.zeros(3, 2),
        "B": torch.zeros(1, 5, 2),
        "C": torch.zeros(1, 5, 2),
    }
    with pytest.raises(ValueError, match=message):
        selective_scan(**(tensors | change))
