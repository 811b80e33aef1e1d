"""Sequences cut into chunks, and the state that travels from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def split_chunks(
    tensor: Float[Tensor, "batch heads length dim"], size: int
) -> Float[Tensor, "batch heads chunks size dim"]:
    """Cut a sequence into chunks of ``size`` tokens, the last one filled up with zeros.

    Zero keys and values add nothing to the state, and a zero log-decay keeps it, so the padding is exact.
    """
    size = min(size, tensor.shape[2])
    missing = -tensor.shape[2] % size
    # In one piece, so that the products to come need not copy it again.
    padded = F.pad(tensor, (0, 0, 0, missing)) if missing else tensor.contiguous()
    chunks: Tensor = padded.unflatten(2, (padded.shape[2] // size, size))
    return chunks


def chunk_recurrence(
    within: Float[Tensor, "batch heads chunks size value_dim"],
    q: Float[Tensor, "batch heads chunks size features"],
    k: Float[Tensor, "batch heads chunks size features"],
    v: Float[Tensor, "batch heads chunks size value_dim"],
    decay: Float[Tensor, "batch heads chunks #features"] | None,
    state: Float[Tensor, "batch heads features value_dim"],
) -> tuple[
    Float[Tensor, "batch heads chunks size value_dim"], Float[Tensor, "batch heads features value_dim"]
]:
    """Add to the outputs ``within`` each chunk what the chunks before it contribute through the state.

    With ``S`` the state before a chunk: ``output = within + q S`` and ``S <- decay * S + k^T v``.

    Args:
        within: Outputs due to tokens of the same chunk.
        q: Queries, decayed from the start of their chunk.
        k: Keys, decayed to the end of their chunk.
        v: Values.
        decay: Factor over a whole chunk, per feature or one for all; ``None`` for no decay.
        state: State before the first chunk.

    Returns:
        The outputs and the state after the last chunk.
    """
    before, state = chunk_states(None if decay is None else decay.unsqueeze(-1), k.mT @ v, state)
    return within + q @ before, state


def chunk_states(
    transition: Float[Tensor, "batch heads chunks #features #features"] | None,
    update: Float[Tensor, "batch heads chunks features value_dim"],
    state: Float[Tensor, "batch heads features value_dim"],
) -> tuple[
    Float[Tensor, "batch heads chunks features value_dim"], Float[Tensor, "batch heads features value_dim"]
]:
    """Follow ``S <- transition S + update`` from chunk to chunk.

    Args:
        transition: A matrix per chunk; or factors per feature, with a last axis of 1; or ``None`` for 1.
        update: What each chunk adds.
        state: State before the first chunk.

    Returns:
        The states before the chunks, and the state after the last one.
    """
    transitions = None if transition is None else transition.flatten(0, 1)
    before, last = _ChunkStates.apply(transitions, update.flatten(0, 1), state.flatten(0, 1))
    return before.unflatten(0, state.shape[:2]), last.unflatten(0, state.shape[:2])


class _ChunkStates(torch.autograd.Function):
    """:func:`chunk_states` with batch and heads in one axis; the gradient is a recurrence backwards."""

    @staticmethod
    def forward(ctx: Any, transition: Tensor | None, update: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states, last = _scan(_per_chunk(transition, update), state, update)
        ctx.save_for_backward(transition, states)
        return states, last

    @staticmethod
    def backward(ctx: Any, grad_before: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        # Torch differentiates these lines where gradients of gradients are asked for: nothing in place.
        transition, states = ctx.saved_tensors
        after = []
        for factor, direct in zip(
            _per_chunk(transition, states)[::-1], grad_before.unbind(1)[::-1], strict=True
        ):
            after.append(grad)
            grad = _step(
                factor if factor is None or factor.shape[-1] == 1 else factor.mT,
                grad,
                direct,
            )
        grad_update = torch.stack(after[::-1], 1)
        if transition is None:
            return None, grad_update, grad
        if transition.shape[-1] > 1:
            return grad_update @ states.mT, grad_update, grad
        grad_factors = (grad_update * states).sum(-1, keepdim=True)
        return grad_factors.sum_to_size(transition.shape), grad_update, grad


def _scan(transitions: Sequence[Tensor | None], state: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and the state after the last."""
    if torch.compiler.is_compiling():  # graphs hold no tensor that is written piece by piece
        reached = [state]
        for factor, added in zip(transitions, update.unbind(1), strict=True):
            reached.append(_step(factor, reached[-1], added))
        return torch.stack(reached[:-1], 1), reached[-1]
    states, last = torch.empty_like(update), torch.empty_like(state)
    states[:, 0] = state
    places = (*states.unbind(1)[1:], last)
    for factor, before, added, after in zip(
        transitions, states.unbind(1), update.unbind(1), places, strict=True
    ):
        _step(factor, before, added, out=after)
    return states, last


def _per_chunk(transition: Tensor | None, states: Tensor) -> Sequence[Tensor | None]:
    return [None] * states.shape[1] if transition is None else transition.unbind(1)


def _step(factor: Tensor | None, state: Tensor, added: Tensor, *, out: Tensor | None = None) -> Tensor:
    if factor is None:
        return torch.add(state, added, out=out)
    if factor.shape[-1] > 1:
        return torch.baddbmm(added, factor, state, out=out)
    return torch.addcmul(added, factor, state, out=out)
