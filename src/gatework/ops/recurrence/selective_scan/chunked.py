"""The selective scan in PyTorch: all chunks side by side, position by position, then chunk after chunk.

A chunk's last state is that of the chunk alone plus its first state times the chunk's decay. So one pass over
the positions of a chunk, for all chunks at once, gives each chunk's share; a pass over the chunks adds them
up; a second pass over the positions, now from the right states, reads the outputs: ``2 C + L / C`` steps for
``L`` tokens in chunks of ``C``. No exponential grows: decays are multiplied, never divided.

Here channels come last, ``(..., states, channels)``, because rows of PyTorch's loops should be long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatework.ops.recurrence.side_by_side import Positions, to_positions, to_tokens

#: Numbers that the backward pass remembers of recomputed states, over all chunks that it walks back together.
_REMEMBERED = 1 << 21


def forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, *, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and the state before each chunk, ``(batch, chunks, channels, states)``."""
    rates, length = a.mT.contiguous(), x.shape[1]
    steps, inputs, b, c = (to_positions(tensor, size) for tensor in (dt, dt * x, b, c))
    state = state.mT
    share = x.new_zeros(*steps.shape[1:3], *rates.shape)
    decay = torch.empty_like(share)
    for j in range(size):
        _advance(share, decay, steps[j], inputs[j], b[j], rates)
    decays = (steps.sum(0)[:, :, None] * rates).exp_()
    kept = torch.empty_like(share)
    for chunk in range(share.shape[1]):
        kept[:, chunk] = state
        state = decays[:, chunk] * state + share[:, chunk]
    current, y = kept.clone(), torch.empty_like(inputs)
    for j in range(size):
        _advance(current, decay, steps[j], inputs[j], b[j], rates)
        y[j] = _read(current, c[j])
    return to_tokens(y, length), state.mT.contiguous(), kept.mT.contiguous()


def backward(
    y_grad: Tensor, state_grad: Tensor, kept: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    *, size: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of ``x, dt, A, B, C`` and of the initial state.

    The gradient of the states runs backwards as the states run forwards, and in the same two levels. Between
    them, some chunks at a time, states are recomputed from those that were kept.
    """
    rates, length = a.mT.contiguous(), x.shape[1]
    tokens = [to_positions(tensor, size) for tensor in (y_grad, dt, dt * x, b, c)]
    gradient, steps, _, _, c_of = tokens
    share = x.new_zeros(*steps.shape[1:3], *rates.shape)
    decay = torch.empty_like(share)
    for j in reversed(range(size)):
        share.addcmul_(c_of[j].unsqueeze(-1), gradient[j].unsqueeze(-2))
        share.mul_(torch.mul(steps[j].unsqueeze(-2), rates, out=decay).exp_())
    decays = (steps.sum(0)[:, :, None] * rates).exp_()
    after, carried = torch.empty_like(share), state_grad.mT
    for chunk in reversed(range(share.shape[1])):
        after[:, chunk] = carried
        carried = decays[:, chunk] * carried + share[:, chunk]
    del share, decay
    starts, of_rates = kept.mT.contiguous(), torch.zeros_like(rates)
    outputs = [torch.empty_like(tokens[kind]) for kind in (1, 1, 3, 3)]
    together = max(1, _REMEMBERED // max(1, size * after[:, 0].numel()))
    for first in range(0, after.shape[1], together):
        some = slice(first, first + together)
        parts = [tensor[:, :, some] for tensor in tokens]
        results = [tensor[:, :, some] for tensor in outputs]
        of_rates += _walk_back(parts, starts[:, some], after[:, some], rates, results)
    of_inputs, of_steps, of_b, of_c = (to_tokens(tensor, length) for tensor in outputs)
    return [
        of_inputs * dt,
        of_steps + of_inputs * x,
        of_rates.mT.contiguous(),
        of_b,
        of_c,
        carried.mT.contiguous(),
    ]


def _walk_back(
    tokens: list[Positions], start: Tensor, after: Tensor, rates: Tensor, outputs: list[Positions]
) -> Tensor:
    """Recompute the states of some chunks, walk back through them, and fill in the gradients of tokens.

    Args:
        tokens: Gradient of the outputs, steps, inputs ``dt x``, ``B`` and ``C``.
        start: The states before the chunks.
        after: The gradients of the states after them.
        rates: ``A``.
        outputs: Gradients of inputs, steps (as far as they enter decays), ``B`` and ``C``, to be filled in.

    Returns:
        The gradient of the rates.
    """
    gradient, steps, inputs, b, c = tokens
    of_inputs, of_steps, of_b, of_c = outputs
    states, decays = [start], []
    for j in range(steps.shape[0]):
        decays.append((steps[j].unsqueeze(-2) * rates).exp_())
        states.append(torch.addcmul(decays[j] * states[j], b[j].unsqueeze(-1), inputs[j].unsqueeze(-2)))
    after, of_rates = after.clone(), torch.zeros_like(rates)
    for j in reversed(range(steps.shape[0])):
        of_c[j] = (states.pop() @ gradient[j].unsqueeze(-1)).squeeze(-1)
        after.addcmul_(c[j].unsqueeze(-1), gradient[j].unsqueeze(-2))
        of_b[j] = (after @ inputs[j].unsqueeze(-1)).squeeze(-1)
        of_inputs[j] = _read(after, b[j])
        after.mul_(decays.pop())
        exponents = after * states[j]
        of_steps[j] = (exponents * rates).sum(-2)
        of_rates += (exponents * steps[j].unsqueeze(-2)).sum((0, 1))
    return of_rates


def _advance(state: Tensor, decay: Tensor, step: Tensor, inputs: Tensor, b: Tensor, rates: Tensor) -> None:
    """``state <- exp(step * rates) * state + b inputs^T``, in place; ``decay`` is memory to work in."""
    torch.mul(step.unsqueeze(-2), rates, out=decay)
    state.mul_(decay.exp_())
    state.addcmul_(b.unsqueeze(-1), inputs.unsqueeze(-2))


def _read(state: Tensor, weights: Tensor) -> Tensor:
    """``weights^T state``: one number per channel."""
    return (weights.unsqueeze(-2) @ state).squeeze(-2)
