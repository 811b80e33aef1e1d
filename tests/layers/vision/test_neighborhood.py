import inspect

import pytest
import torch

import gatework
from gatework.checkpoints import CheckpointError
from gatework.layers.vision import neighborhood
from gatework.ops.vision.neighborhood import neighborhood_reference
from gatework.ops.vision.neighborhood_split import na2d_av, na2d_qk
from tests.warm_python import run_python

DOUBLE = torch.float64
CURRENT = {n: getattr(neighborhood, f"NeighborhoodAttention{n}D") for n in (1, 2, 3)}
BIASED = {n: getattr(neighborhood, f"BiasedNeighborhoodAttention{n}D") for n in (1, 2, 3)}
axes = pytest.mark.parametrize("n", [1, 2, 3])
kinds = pytest.mark.parametrize("kind", [CURRENT, BIASED], ids=["current", "biased"])


def close(ours, wanted, atol=1e-11):
    torch.testing.assert_close(ours, wanted, rtol=0, atol=atol)


def tokens(*grid, batch=2, channels=12, dtype=DOUBLE):
    return torch.randn(batch, *grid, channels, dtype=dtype)


def by_hand(model, x, *, scale, **windows):
    """The equation of the module, through the definition of the operator."""
    qkv = x @ model.qkv.weight.mT + (0 if model.qkv.bias is None else model.qkv.bias)
    channels, heads = x.shape[-1], model.num_heads
    q, k, v = (part.unflatten(-1, (heads, channels // heads)) for part in qkv.split(channels, -1))
    y, _ = neighborhood_reference(q, k, v, **windows, scale=scale)
    return y.flatten(-2) @ model.proj.weight.mT + model.proj.bias


@axes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.0, 0.7])
def test_forward_is_the_equation(n, bias, scale):
    windows = {
        "kernel_size": (4, 3, 2)[:n],
        "stride": (2, 3, 1)[:n],
        "dilation": (2, 1, 2)[:n],
        "is_causal": (False, True, False)[:n],
    }
    model = CURRENT[n](12, 3, *windows.values(), bias, scale).double()
    x = tokens(*(9, 5, 4)[:n])
    close(model(x), by_hand(model, x, scale=scale, **windows))


@axes
def test_constructor_is_that_of_natten(n):
    parameters = list(inspect.signature(CURRENT[n]).parameters.values())
    assert [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        ("embed_dim", inspect.Parameter.empty),
        ("num_heads", inspect.Parameter.empty),
        ("kernel_size", inspect.Parameter.empty),
        ("stride", 1),
        ("dilation", 1),
        ("is_causal", False),
        ("qkv_bias", True),
        ("qk_scale", None),
        ("proj_drop", 0.0),
    ]
    parameters = list(inspect.signature(BIASED[n]).parameters.values())
    assert [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        ("dim", inspect.Parameter.empty),
        ("num_heads", inspect.Parameter.empty),
        ("kernel_size", inspect.Parameter.empty),
        ("dilation", 1),
        ("is_causal", False),
        ("rel_pos_bias", False),
        ("qkv_bias", True),
        ("qk_scale", None),
        ("attn_drop", 0.0),
        ("proj_drop", 0.0),
        ("use_experimental_ops", False),
    ]


@axes
@kinds
@pytest.mark.parametrize("bias", [True, False])
def test_parameters(n, kind, bias):
    model = kind[n](16, 2, 3, qkv_bias=bias)
    names = {"qkv.weight": (48, 16), "qkv.bias": (48,), "proj.weight": (16, 16), "proj.bias": (16,)}
    if not bias:
        del names["qkv.bias"]
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == names
    assert sum(p.numel() for p in model.parameters()) == 4 * 16 * 16 + (4 if bias else 1) * 16


@axes
def test_old_checkpoints_load(n):
    model, old = (BIASED[n](16, 2, 5, rel_pos_bias=True) for _ in range(2))
    assert model.rpb.shape == (2, *[9] * n)
    assert 0.01 < model.rpb.std() < 0.03
    checkpoint = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    assert set(checkpoint) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rpb"}
    gatework.load_checkpoint(model, checkpoint)
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="1 unknown: rpb"):
        gatework.load_checkpoint(CURRENT[n](16, 2, 5), checkpoint)


@axes
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_older_module_without_bias_is_the_current_one(n, is_causal):
    grid = (7, 6, 6)[:n]
    old = BIASED[n](12, 3, 3, 2, is_causal, qk_scale=0.4, attn_drop=0.5).double().eval()
    new = CURRENT[n](12, 3, 3, 1, 2, is_causal, qk_scale=0.4).double()
    new.load_state_dict(old.state_dict())
    x = tokens(*grid)
    close(old(x), new(x))


def test_the_bias_is_that_of_the_older_functions():
    model = BIASED[2](12, 3, (3, 5), (2, 1), rel_pos_bias=True).double()
    x = tokens(7, 6)
    q, k, v = (part.unflatten(-1, (3, 4)).movedim(-2, 1) for part in model.qkv(x).split(12, -1))
    weights = na2d_qk(q * 0.5, k, (3, 5), (2, 1), rpb=model.rpb).softmax(-1)
    wanted = model.proj(na2d_av(weights, v, (3, 5), (2, 1)).movedim(1, -2).flatten(-2))
    close(model(x), wanted)
    model(x).sum().backward()
    assert model.rpb.grad.abs().min() > 0


def test_dropout_is_for_training_only():
    old = BIASED[2](12, 3, 3, attn_drop=0.5, rel_pos_bias=True).double()
    new = CURRENT[2](12, 3, 3, proj_drop=0.5).double()
    x = tokens(5, 5)
    for model in (old, new):
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
    dropped = new.train()(x)
    kept = dropped != 0
    close(dropped[kept], 2 * new.eval()(x)[kept])
    assert 0.3 < kept.double().mean() < 0.7


@kinds
def test_small_inputs_are_refused_or_clamped(kind):
    options = {"dilation": (2, 3)}
    strict, lenient = kind[2](12, 3, 5, **options), kind[2](12, 3, 5, **options, small_input="clamp")
    lenient.load_state_dict(strict.state_dict())
    strict, lenient = strict.double(), lenient.double()
    for grid, window, dilation in (
        ((10, 15), (5, 5), (2, 3)),  # it fits
        ((9, 14), (5, 5), (1, 2)),  # a smaller dilation does
        ((4, 7), (4, 5), (1, 1)),
        ((3, 2), (3, 2), (1, 1)),
        ((1, 9), (-1, 5), (1, 1)),
        ((1, 1), (-1, -1), (1, 1)),
    ):
        x = tokens(*grid)
        wanted = by_hand(lenient, x, scale=None, kernel_size=window, dilation=dilation)
        close(lenient(x), wanted)
        if grid == (10, 15):
            close(strict(x), wanted)
        else:
            with pytest.raises(ValueError, match=r"kernel_size \* dilation must be at most the input's"):
                strict(x)


def test_a_clamped_window_uses_the_middle_of_the_bias():
    wide = BIASED[2](12, 3, 7, rel_pos_bias=True, small_input="clamp").double()
    narrow = BIASED[2](12, 3, (3, 5), rel_pos_bias=True).double()
    state = wide.state_dict()
    state["rpb"] = state["rpb"][:, 4:9, 2:11]
    narrow.load_state_dict(state)
    x = tokens(3, 5)
    close(wide(x), narrow(x))
    assert wide(tokens(2, 4)).shape == (2, 2, 4, 12)


def test_a_window_of_minus_one_is_the_whole_axis_of_any_input():
    model = CURRENT[2](12, 3, (-1, 3)).double()
    for rows in (1, 2, 7):
        x = tokens(rows, 6)
        close(model(x), by_hand(model, x, scale=None, kernel_size=(-1, 3)))


@axes
@kinds
def test_gradients_reach_everything(n, kind):
    model = kind[n](8, 2, 3).double()
    x = tokens(*(4, 4, 3)[:n], channels=8).requires_grad_()
    model(x).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [x, *model.parameters()])


@kinds
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_any_size(kind, batch):
    model = kind[2](12, 3, 3).double()
    x = tokens(4, 4, batch=batch).requires_grad_()
    y = model(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@kinds
def test_autocast_and_half_precision(kind):
    options = {"rel_pos_bias": True} if kind is BIASED else {"stride": 2}
    model = kind[2](16, 2, 3, **options)
    x = tokens(7, 6, channels=16, dtype=torch.float32).requires_grad_()
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    close(y.float(), wanted, 3e-2)
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in [x, *model.parameters()])
    close(model.bfloat16()(x.bfloat16()).float(), wanted, 3e-2)


def test_compiles_without_a_break():
    # In a process of its own: the run-time checks, even switched off, wrap the masks that are made within.
    program = """
import torch
from gatework.natten import BiasedNeighborhoodAttention2D, NeighborhoodAttention2D, na2d

def check(function, *inputs):
    leaves = [tensor.double().requires_grad_() for tensor in inputs]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for run in (compiled, function):
        y = run(*leaves)
        gradients = torch.autograd.grad(y.pow(2).sum(), leaves)
        if run is compiled:
            first = [y, *gradients]
    torch.testing.assert_close(first, [y, *gradients], rtol=0, atol=1e-11)

x = torch.randn(2, 6, 7, 8)
check(NeighborhoodAttention2D(8, 2, 3, stride=2, dilation=2).double(), x)
check(NeighborhoodAttention2D(8, 2, 7, small_input="clamp").double(), x)
check(BiasedNeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True).double(), x)
q, more = torch.randn(1, 6, 7, 2, 4), torch.randn(1, 3, 2, 4)
options = {"kernel_size": 3, "is_causal": True}
check(lambda q, k, m: na2d(q, k, k, **options, additional_keys=m, additional_values=m), q, q, more)
"""
    done = run_python(["-c", program])
    assert done.returncode == 0, done.stderr


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CURRENT, {"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        (BIASED, {"dim": -3}, "dim must be at least 1, got -3"),
        (CURRENT, {"num_heads": 5}, "num_heads must divide embed_dim=12, got 5"),
        (BIASED, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
        (CURRENT, {"kernel_size": 1}, "kernel_size must be at least 2, or -1 for a whole axis, got 1"),
        (BIASED, {"kernel_size": 4}, "kernel_size must be odd and at least 3, got 4"),
        (BIASED, {"kernel_size": -1}, "kernel_size must be odd and at least 3, got -1"),
        (CURRENT, {"stride": 4}, "stride must be at most kernel_size, got 4 and 3"),
        (CURRENT, {"stride": "1"}, "stride must be an integer, got '1'"),
        (CURRENT, {"dilation": (1,)}, r"dilation must be one number or 2, one for each axis, got \(1,\)"),
        (BIASED, {"is_causal": "no"}, "is_causal must be True or False, got 'no'"),
        (CURRENT, {"proj_drop": 1.0}, r"proj_drop must be at least 0 and below 1, got 1\.0"),
        (BIASED, {"attn_drop": -0.1}, r"attn_drop must be at least 0 and below 1, got -0\.1"),
        (CURRENT, {"small_input": "pad"}, "small_input must be one of error, clamp, got 'pad'"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    dim = "embed_dim" if kind is CURRENT else "dim"
    with pytest.raises((TypeError, ValueError), match=message):
        kind[2](**{dim: 12, "num_heads": 3, "kernel_size": 3, **options})


@pytest.mark.bad_input
def test_a_causal_bias_is_refused():
    with pytest.raises(
        NotImplementedError, match=r"rel_pos_bias cannot be combined with is_causal=\(True, Fa"
    ):
        BIASED[2](12, 3, 3, is_causal=(True, False), rel_pos_bias=True)


@pytest.mark.bad_input
@kinds
def test_wrong_inputs_are_named(kind):
    model = kind[2](12, 3, 3)
    for shape in ((2, 5, 12), (2, 5, 5, 5, 12), (2, 5, 5, 11)):
        with pytest.raises(
            ValueError, match=r"x must have shape \(batch, 2 axes of tokens, 12\), got \(2, 5"
        ):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"must be at most the input's 2 tokens along axis 1, got 3 \* 1"):
        model(torch.zeros(1, 3, 2, 12))
