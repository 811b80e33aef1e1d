import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework import create_mixer
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence.attention import MultiHeadAttention, SlidingWindowAttention
from tests.warm_python import run_python

DOUBLE = torch.float64
MIXERS = {
    "attention": lambda **options: MultiHeadAttention(12, **options),
    "window 3": lambda **options: SlidingWindowAttention(12, window_size=3, **options),
    "window 0": lambda **options: SlidingWindowAttention(12, window_size=0, **options),
    "window 40": lambda **options: SlidingWindowAttention(12, window_size=40, **options),
}
OPTIONS = {
    "one head": {},
    "heads": {"num_heads": 3, "qkv_bias": False},
    "grouped": {"num_heads": 6, "num_kv_heads": 2},
    "rope": {"num_heads": 2, "rope": True},
    "grouped rope": {"num_heads": 6, "num_kv_heads": 3, "rope": True, "rope_theta": 100.0, "out_bias": False},
}
mixers = pytest.mark.parametrize("mixer", MIXERS)
options = pytest.mark.parametrize("option", OPTIONS)


def make(mixer, option="grouped rope", **more):
    return MIXERS[mixer](**OPTIONS[option], **more).double().eval()


def steps(model, x, state):
    outputs = []
    for token in x.unbind(1):
        y, state = model.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


@mixers
@options
def test_forward_is_the_equation(mixer, option):
    model, x = make(mixer, option), torch.randn(2, 9, 12, dtype=DOUBLE)
    heads, kv_heads, dim = model.num_heads, model.num_kv_heads, model.head_dim
    window = {"attention": 99, "window 3": 3, "window 0": 0, "window 40": 40}[mixer]
    q, k, v = (x @ model.qkv.weight.mT + (0 if model.qkv.bias is None else model.qkv.bias)).split(
        [heads * dim, kv_heads * dim, kv_heads * dim], -1
    )
    rope = OPTIONS[option].get("rope_theta", 1e4) if OPTIONS[option].get("rope") else None
    outputs = []
    for h in range(heads):
        g = h // (heads // kv_heads)
        q_h, k_h, v_h = (
            q[..., h * dim : (h + 1) * dim],
            k[..., g * dim : (g + 1) * dim],
            v[..., g * dim : (g + 1) * dim],
        )
        if rope:
            q_h, k_h = (rotary_embedding(t.unsqueeze(1), theta=rope).squeeze(1) for t in (q_h, k_h))
        y_h = torch.zeros_like(q_h)
        for i in range(9):
            seen = slice(max(0, i - window), i + 1)
            weights = torch.softmax((k_h[:, seen] @ q_h[:, i, :, None]).squeeze(-1) / dim**0.5, -1)
            y_h[:, i] = (weights[:, :, None] * v_h[:, seen]).sum(1)
        outputs.append(y_h)
    y = torch.cat(outputs, -1) @ model.out_proj.weight.mT
    y = y if model.out_proj.bias is None else y + model.out_proj.bias
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-11)


@mixers
@options
def test_steps_are_the_forward_pass(mixer, option):
    model, x = make(mixer, option), torch.randn(2, 200, 12, dtype=DOUBLE)
    y, state = steps(model, x, model.initial_state(2))
    torch.testing.assert_close(y, model(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(model.prefill(x)[1], state, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    mixer=st.sampled_from(list(MIXERS)),
    option=st.sampled_from(list(OPTIONS)),
    batch=st.integers(0, 2),
    chunks=st.lists(st.sampled_from([0, 1, 2, 3, 50, 100]), max_size=5),
)
def test_any_chunking_is_the_forward_pass(mixer, option, batch, chunks):
    model, x = make(mixer, option), torch.randn(batch, sum(chunks), 12, dtype=DOUBLE)
    state, outputs = None, [x[:, :0]]
    for chunk in x.split(chunks, 1) if chunks else ():
        y, state = model.prefill(chunk, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), model(x), rtol=0, atol=1e-11)


@mixers
def test_gradients_through_chunks_are_those_of_forward(mixer):
    model, x = make(mixer), torch.randn(1, 9, 12, dtype=DOUBLE, requires_grad=True)
    model(x).pow(2).sum().backward()
    whole, x.grad = x.grad, None
    first, state = model.prefill(x[:, :5])
    second, _ = model.prefill(x[:, 5:], state)
    torch.cat([first, second], 1).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, whole, rtol=0, atol=1e-11)


@mixers
@options
def test_state_size_is_what_step_carries(mixer, option):
    model = make(mixer, option)
    state = model.initial_state(3)
    assert model.state_size(0) == 0
    for length in range(1, 8):
        before = {name: tensor.clone() for name, tensor in state.items()}
        _, after = model.step(torch.randn(3, 12, dtype=DOUBLE), state)
        torch.testing.assert_close(state, before, rtol=0, atol=0)
        state = after
        assert sum(tensor[0].numel() for tensor in state.values()) == model.state_size(length)
    kept = {"attention": 7, "window 3": 3, "window 0": 0, "window 40": 7}[mixer]
    assert model.state_size(7) == 2 * model.num_kv_heads * model.head_dim * kept


@mixers
def test_what_a_token_depends_on(mixer):
    model, x = make(mixer), torch.randn(1, 100, 12, dtype=DOUBLE)
    changed = x.clone()
    changed[:, 50] += 1
    differs = (model(x) != model(changed)).any(-1)[0].nonzero().flatten().tolist()
    last = {"attention": 99, "window 3": 53, "window 0": 50, "window 40": 90}[mixer]
    assert differs == list(range(50, last + 1))


@mixers
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0), (2, 1)])
def test_empty_and_single(mixer, batch, length):
    model, x = make(mixer), torch.randn(batch, length, 12, dtype=DOUBLE, requires_grad=True)
    y = model(x)
    assert y.shape == x.shape
    y.sum().backward()
    prefilled, state = model.prefill(x)
    assert prefilled.shape == x.shape
    assert state["keys"].shape[0] == batch


def test_state_has_the_dtype_it_was_asked_for():
    model = make("window 3").float()
    state = model.initial_state(2, dtype=torch.bfloat16)
    y, state = model.step(torch.randn(2, 12), state)
    assert y.dtype == torch.float32
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in model.initial_state(2).values()} == {torch.float32}


@mixers
def test_autocast(mixer):
    model, x = make(mixer).float(), torch.randn(2, 70, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        stepped, _ = steps(model, x, model.initial_state(2))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0, atol=2e-2)
    torch.testing.assert_close(stepped.float(), model(x), rtol=0, atol=2e-2)
    y.float().sum().backward()
    assert x.grad.isfinite().all()


@mixers
def test_half_precision_parameters(mixer):
    model, x = make(mixer), torch.randn(2, 70, 12, dtype=DOUBLE)
    wanted = model(x)
    torch.testing.assert_close(model.bfloat16()(x.bfloat16()).double(), wanted, rtol=0, atol=3e-2)


@pytest.mark.compile
@mixers
def test_compiles_without_a_break(mixer):
    model, x = make(mixer), torch.randn(2, 200, 12, dtype=DOUBLE)
    torch.compiler.reset()  # other tests count towards the limit of recompilations
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-11)


def test_decoding_compiles_without_a_break():
    # In a process of its own: the run-time checks, even switched off, wrap the masks that prefill makes.
    program = """
import torch
from gatework.layers.sequence.attention import SlidingWindowAttention
model = SlidingWindowAttention(8, window_size=3, num_heads=2, rope=True).double()
x = torch.randn(2, 9, 8, dtype=torch.float64)
prefill = torch.compile(model.prefill, fullgraph=True, backend="aot_eager")
first, state = prefill(x[:, :4])
second, state = prefill(x[:, 4:8], state)
third, state = torch.compile(model.step, fullgraph=True, backend="aot_eager")(x[:, 8], state)
torch.testing.assert_close(torch.cat([first, second, third.unsqueeze(1)], 1), model(x), rtol=0, atol=1e-11)
"""
    done = run_python(["-c", program])
    assert done.returncode == 0, done.stderr


@mixers
def test_dropout_is_for_training_only(mixer):
    model, x = make(mixer, "heads", dropout=0.5), torch.randn(2, 70, 12, dtype=DOUBLE)
    without = make(mixer, "heads")
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(x), without(x))
    assert not torch.equal(model.train()(x), without(x))
    assert torch.equal(without.train()(x), without(x))


@pytest.mark.parametrize("cls", [MultiHeadAttention, SlidingWindowAttention])
def test_official_names(cls):
    model = cls(8, num_heads=2)
    official = {name.replace("qkv", "Wqkv"): tensor for name, tensor in model.state_dict().items()}
    assert set(official) == {"Wqkv.weight", "Wqkv.bias", "out_proj.weight", "out_proj.bias"}
    model.load_state_dict(model.convert_official(official), strict=True)


def test_registry_makes_them():
    assert isinstance(create_mixer("attention", 8, num_heads=2, rope=True), MultiHeadAttention)
    assert create_mixer("sliding_window", 8, window_size=5).state_size(100) == 2 * 8 * 5


@pytest.mark.bad_input
@pytest.mark.parametrize("cls", [MultiHeadAttention, SlidingWindowAttention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide dim=12, got 5"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads must divide num_heads=4, got 3"),
        ({"num_heads": 4, "num_kv_heads": 0}, "num_kv_heads must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"num_heads": 4, "rope": True}, "rope needs an even dim // num_heads, got 12 // 4"),
        ({"rope": True, "rope_theta": 0.0}, r"rope_theta must be positive, got 0\.0"),
    ],
)
def test_wrong_options_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(12, **options)


@pytest.mark.bad_input
def test_wrong_window_and_wrong_width_are_named():
    with pytest.raises(ValueError, match="window_size must be at least 0, got -1"):
        SlidingWindowAttention(12, window_size=-1)
    with pytest.raises(ValueError, match=r"x must have 12 channels, got shape \(2, 5, 8\)"):
        MultiHeadAttention(12)(torch.zeros(2, 5, 8))
