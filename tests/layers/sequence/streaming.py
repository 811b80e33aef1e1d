"""What every causal mixer keeps: steps, chunks and whole sequences agree, and nothing sees the future."""

import torch

TOLERANCE = {"rtol": 0, "atol": 1e-10}

#: Token ids of some sequences, few enough that they repeat, and others with which to replace them.
TOKENS, OTHER_TOKENS = (
    torch.randint(5, (16, 256), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
)


def reads(mixer, batch, start, stop, *, changed_from=256):
    """What the mixer is told of positions ``start ... stop - 1`` besides the inputs, by keyword."""
    if not mixer.reads_tokens:
        return {}
    ids, others = (table[:batch, start:stop] for table in (TOKENS, OTHER_TOKENS))
    return {"tokens": torch.where(torch.arange(start, stop) < changed_from, ids, others)}


def call(mixer, x, **options):
    """The mixer's output for a whole sequence, with the token ids that it reads."""
    return mixer(x, **reads(mixer, x.shape[0], 0, x.shape[1], **options))


def prefill(mixer, x, state=None, *, start=0):
    """A stretch of tokens from position ``start`` on, likewise."""
    return mixer.prefill(x, state, **reads(mixer, x.shape[0], start, start + x.shape[1]))


def step(mixer, x, state, *, at):
    """The token at one position, likewise."""
    told = reads(mixer, x.shape[0], at, at + 1)
    return mixer.step(x, state, **{name: tensor.squeeze(1) for name, tensor in told.items()})


def read_in_chunks(mixer, x, sizes):
    """Outputs and final state of ``prefill`` over chunks of the given sizes (1 goes through ``step``)."""
    state, outputs, start = mixer.initial_state(x.shape[0]), [], 0
    for chunk in x.split(sizes, 1):
        if chunk.shape[1] == 1:
            y, state = step(mixer, chunk[:, 0], state, at=start)
            y = y.unsqueeze(1)
        else:
            y, state = prefill(mixer, chunk, state, start=start)
        outputs.append(y)
        start += chunk.shape[1]
    return torch.cat(outputs, 1), state


def check_streaming(mixer, length, *, batch=2):
    """Any chunking equals ``forward``, in values and input gradients, and carries what it says it carries."""
    x = torch.randn(batch, length, mixer.dim, dtype=torch.float64, requires_grad=True)
    y = call(mixer, x)
    cotangent = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    third = length // 3
    whole = [length - third, 0, third]
    for sizes in ([1] * length, [third, 1, 2, length - third - 3], whole):
        streamed, state = read_in_chunks(mixer, x, sizes)
        torch.testing.assert_close(streamed, y, **TOLERANCE)
        (streamed_gradient,) = torch.autograd.grad(streamed, x, cotangent)
        torch.testing.assert_close(streamed_gradient, gradient, **TOLERANCE)
        assert sum(tensor[0].numel() for tensor in state.values()) == mixer.state_size(length)
    from_start, state_from_start = prefill(mixer, x)
    torch.testing.assert_close(from_start, y, **TOLERANCE)
    for name, tensor in state.items():
        torch.testing.assert_close(state_from_start[name], tensor, **TOLERANCE)


def check_step_is_pure(mixer):
    """A step leaves the state it was given as it was, so that decoding can branch."""
    _, state = prefill(mixer, torch.randn(2, 5, mixer.dim, dtype=torch.float64))
    before = {name: tensor.clone() for name, tensor in state.items()}
    x = torch.randn(2, mixer.dim, dtype=torch.float64)
    first, _ = step(mixer, x, state, at=5)
    again, _ = step(mixer, x, state, at=5)
    assert torch.equal(first, again)
    assert all(torch.equal(state[name], before[name]) for name in before)


def check_causality(mixer, length, at):
    """Changing inputs from ``at`` on changes outputs from ``at`` on only, and does change them."""
    x = torch.randn(1, length, mixer.dim, dtype=torch.float64)
    changed = x.clone()
    changed[:, at:] += torch.randn_like(changed[:, at:])
    y, y_changed = call(mixer, x), call(mixer, changed, changed_from=at)
    torch.testing.assert_close(y[:, :at], y_changed[:, :at], **TOLERANCE)
    assert (y[:, at:] - y_changed[:, at:]).abs().amax((0, 2)).min() > 1e-6


def check_empty(mixer):
    """Empty batches and sequences go through, forward and backward."""
    for batch, length in ((0, 4), (2, 0), (0, 0), (3, 1)):
        x = torch.randn(batch, length, mixer.dim, dtype=torch.float64, requires_grad=True)
        y = call(mixer, x)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad is not None
        streamed, state = prefill(mixer, x)
        assert streamed.shape == x.shape
        y, _ = step(mixer, torch.randn(batch, mixer.dim, dtype=torch.float64), state, at=length)
        assert y.shape == (batch, mixer.dim)


def check_autocast(mixer):
    """bfloat16 autocast changes the outputs by its rounding only."""
    x = torch.randn(2, 40, mixer.dim)
    expected = call(mixer, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(mixer, x)
        streamed, _ = read_in_chunks(mixer, x, [20, 1, 19])
    scale = expected.abs().max()
    assert (y - expected).abs().max() / scale < 0.03
    assert (streamed - expected).abs().max() / scale < 0.03


def check_compiles(mixer):
    """One graph, forward and backward, with equal values."""
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, mixer.dim, requires_grad=True)
    y, y_compiled = call(mixer, x), compiled(x, **reads(mixer, 2, 0, 12))
    torch.testing.assert_close(y_compiled, y)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, **reads(mixer, 2, 0, 12)), y)
    for ours, theirs in zip(
        torch.autograd.grad(y.sum(), [x, *mixer.parameters()], allow_unused=True),
        torch.autograd.grad(y_compiled.sum(), [x, *mixer.parameters()], allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
