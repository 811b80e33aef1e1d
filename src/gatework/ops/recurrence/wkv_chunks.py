"""WKV of RWKV-4 in PyTorch: all chunks side by side, position by position, then chunk after chunk.

A state is a triple ``(numerator, denominator, exponent)``: sums of ``weight * value`` and of ``weight``, both
to be multiplied by ``exp(exponent)``. The exponent is a running maximum, so that no exponential here grows;
two triples add up to one whose exponent is the larger of theirs. Gradients of states are such triples too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatework.ops.recurrence.side_by_side import to_positions, to_tokens

Triple = tuple[Tensor, Tensor, Tensor]


def forward(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, start: Tensor, *, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and the state before each chunk, ``(batch, chunks, 3, channels)``."""
    length = k.shape[1]
    keys, values = (to_positions(tensor, size) for tensor in (k, v))
    kept = _states_before_chunks(keys, values, decay, start)
    (numerators, denominators, exponents), last = _states(keys, values, decay, kept, length)
    past, now, _ = _weights(exponents, keys + bonus)
    y = (past * numerators + now * values) / (past * denominators + now)
    return to_tokens(y, length), torch.stack(last, 1), kept


def backward(
    y_grad: Tensor,
    last_grad: Tensor,
    kept: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    *,
    size: int,
) -> list[Tensor]:
    """Gradients of ``k, v, w, u`` and, as a triple, of the initial state."""
    length = k.shape[1]
    keys, values, grad = (to_positions(tensor, size) for tensor in (k, v, y_grad))
    (numerators, denominators, exponents), _ = _states(keys, values, decay, kept, length)
    past, now, top = _weights(exponents, keys + bonus)
    inverse = (past * denominators + now).reciprocal()
    sum_grad = grad * inverse
    weights_grad = -sum_grad * (past * numerators + now * values) * inverse
    after, start_grad = _gradients(sum_grad, weights_grad, top, decay, last_grad, length)
    bonus_grad = now * (sum_grad * values + weights_grad)
    # Neither exponent is above 0, unless by rounding: a token is a part of what later tokens read.
    written = (keys + after[2]).clamp_max(0).exp()
    keys_grad = bonus_grad + written * (after[0] * values + after[1])
    values_grad = now * sum_grad + written * after[0]
    decayed = (decay + exponents + after[2]).clamp_max(0).exp()
    decay_grad = (decayed * (after[0] * numerators + after[1] * denominators)).sum((0, 1, 2))
    return [
        to_tokens(keys_grad, length),
        to_tokens(values_grad, length),
        decay_grad,
        bonus_grad.sum((0, 1, 2)),
        start_grad,
    ]


def _add(
    numerator: Tensor,
    denominator: Tensor,
    exponent: Tensor,
    other_numerator: Tensor,
    other_denominator: Tensor,
    other_exponent: Tensor,
) -> Triple:
    """Add two triples."""
    first, second, top = _weights(exponent, other_exponent)
    return (
        first * numerator + second * other_numerator,
        first * denominator + second * other_denominator,
        top,
    )


def _weights(exponent: Tensor, other: Tensor) -> Triple:
    """``exp(exponent - top)``, ``exp(other - top)`` and ``top``, the larger exponent."""
    top = torch.maximum(exponent, other)
    return (exponent - top).exp(), (other - top).exp(), top


def _nothing(like: Tensor) -> Triple:
    """The triple of an empty sum."""
    return torch.zeros_like(like), torch.zeros_like(like), torch.full_like(like, -torch.inf)


def _unbind(tensor: Tensor, axis: int) -> Triple:
    """Take apart a triple that is one tensor."""
    numerator, denominator, exponent = tensor.unbind(axis)
    return numerator, denominator, exponent


def _stack(triples: list[Triple]) -> Triple:
    """Put the triples of many positions one after the other."""
    numerators, denominators, exponents = (torch.stack(parts) for parts in zip(*triples, strict=True))
    return numerators, denominators, exponents


def _states_before_chunks(keys: Tensor, values: Tensor, decay: Tensor, start: Tensor) -> Tensor:
    """Each chunk's own sums, then all chunks' one after the other."""
    own, one = _nothing(keys[0]), torch.ones_like(keys[0])
    for j in range(keys.shape[0]):
        own = _add(own[0], own[1], own[2] + decay, values[j], one, keys[j])
    state, before = _unbind(start, 1), []
    for chunk in range(keys.shape[2]):
        before.append(torch.stack(state, 1))
        numerator, denominator, exponent = (part[:, chunk] for part in own)
        past = state[2] + keys.shape[0] * decay
        state = _add(state[0], state[1], past, numerator, denominator, exponent)
    return torch.stack(before, 1)


def _states(keys: Tensor, values: Tensor, decay: Tensor, kept: Tensor, length: int) -> tuple[Triple, Triple]:
    """The state before every position, and the one after the last token."""
    state, one = _unbind(kept, 2), torch.ones_like(keys[0])
    before: list[Triple] = []
    last = state
    for j in range(keys.shape[0]):
        before.append(state)
        state = _add(state[0], state[1], state[2] + decay, values[j], one, keys[j])
        if j == (length - 1) % keys.shape[0]:
            last = state
    return _stack(before), (last[0][:, -1], last[1][:, -1], last[2][:, -1])


def _gradients(
    sum_grad: Tensor, weights_grad: Tensor, top: Tensor, decay: Tensor, last_grad: Tensor, length: int
) -> tuple[Triple, Tensor]:
    """The gradient of the state after every position, and of the first state.

    An output reads the state before its token, whose gradient so is ``(sum_grad, weights_grad) exp(-top)``
    and what comes from later tokens.
    """
    size, final = top.shape[0], (length - 1) % top.shape[0]

    def walk_back(grad: Triple) -> tuple[list[Triple], Triple]:
        after: list[Triple] = []
        for j in reversed(range(size)):
            if j == final:  # the last chunk's positions beyond it are there to fill it up
                grad = _replace_last(grad, last_grad)
            after.append(grad)
            grad = _add(grad[0], grad[1], grad[2] + decay, sum_grad[j], weights_grad[j], -top[j])
        return after[::-1], grad

    _, own = walk_back(_nothing(top[0]))
    carried, after_chunks = _nothing(top[0, :, 0]), []
    for chunk in reversed(range(top.shape[2])):
        after_chunks.append(torch.stack(carried, 1))
        numerator, denominator, exponent = (part[:, chunk] for part in own)
        later = carried[2] + size * decay
        carried = _add(carried[0], carried[1], later, numerator, denominator, exponent)
    after, _ = walk_back(_unbind(torch.stack(after_chunks[::-1], 1), 2))
    return _stack(after), torch.stack(carried, 1)


def _replace_last(grad: Triple, last_grad: Tensor) -> Triple:
    """Put the given gradient where the last chunk's is."""
    first, second, third = (
        torch.cat([part[:, :-1], last_grad[:, None, index]], 1) for index, part in enumerate(grad)
    )
    return first, second, third
