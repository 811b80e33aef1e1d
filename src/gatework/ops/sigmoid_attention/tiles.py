"""Exact sigmoid attention over the tiles of a plan with PyTorch's own operators, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gatework.ops.attention.steps import AddedMasks, Schedule, Step
from gatework.ops.attention.tiles import Scoring, add_to_bias, add_to_scores, kept_weights

#: Scores that are held at a time, unless a few keys have more: memory of this size is had without new pages.
_SCORES_AT_ONCE = 1 << 21
_FEWEST_KEYS = 256


def forward(
    q: Tensor, k: Tensor, v: Tensor, row_bias: Tensor, schedule: Schedule, scoring: Scoring
) -> Tensor:
    """Return the outputs, in the dtype of the inputs; ``row_bias`` has ``(batch, heads, q_length)``."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    scratch = _Scratch(q)
    for number, step in enumerate(schedule.steps):
        keys, values = step.keys(k), step.keys(v)
        if keys.shape[0] == 0 or keys.shape[1] == 0:
            continue
        rows = step.queries(q), step.queries(row_bias)
        y: Tensor | None = None
        for columns in _stretches(rows[0], keys):
            weights = _weights(*rows, keys[:, columns], step, columns, schedule.added, scoring, scratch)
            keep = kept_weights(weights, scoring, number, columns.start)
            if keep is not None:
                weights.mul_(keep)
            part = values[:, columns]
            y = torch.bmm(weights, part) if y is None else y.baddbmm_(weights, part)
        assert y is not None, "there are keys"
        step.put(out, y.view(*rows[0].shape[:3], -1))
    return out


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    schedule: Schedule,
    scoring: Scoring,
    *,
    needs_row_grad: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of queries, keys and values, of the row bias, and of ``bias`` if it is given.

    With ``p = sigmoid(s)`` and the gradient ``g_i`` of output ``i``, the gradient of a score is
    ``p_ij * (1 - p_ij) * g_i . v_j``: nothing of the forward pass is needed but its inputs.
    """
    grads = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    grad_rows = q.new_zeros(q.shape[:3]) if needs_row_grad else None
    grad_bias = None if bias is None else torch.zeros_like(bias)
    scratch = _Scratch(q), _Scratch(q)
    for number, step in enumerate(schedule.steps):
        keys, values = step.keys(k), step.keys(v)
        if keys.shape[0] == 0 or keys.shape[1] == 0:
            continue
        _backward_step(
            step.queries(grad),
            step.queries(q),
            keys,
            values,
            step.queries(row_bias),
            step,
            schedule.added,
            scoring,
            number,
            scratch,
            grads,
            grad_rows,
            grad_bias,
        )
    return *grads, grad_rows, grad_bias


def _backward_step(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    step: Step,
    added: AddedMasks,
    scoring: Scoring,
    number: int,
    scratch: tuple[_Scratch, _Scratch],
    grads: tuple[Tensor, Tensor, Tensor],
    grad_rows: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Add the gradients of one step, some keys at a time."""
    grad, flat_q = grad.flatten(1, 2), q.flatten(1, 2)
    grad_q, totals = torch.zeros_like(flat_q), torch.zeros_like(row_bias)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    for columns in _stretches(q, k):
        weights = _weights(q, row_bias, k[:, columns], step, columns, added, scoring, scratch[0])
        grad_scores = torch.bmm(grad, v[:, columns].mT, out=scratch[1].take(weights.shape))
        keep = kept_weights(weights, scoring, number, columns.start)
        if keep is not None:
            grad_scores.mul_(keep)
        grad_v[:, columns] = (weights if keep is None else weights * keep).mT @ grad
        torch.ops.aten.sigmoid_backward.grad_input(grad_scores, weights, grad_input=grad_scores)
        by_row = grad_scores.view(*q.shape[:3], -1)
        if grad_rows is not None:
            totals += by_row.sum(-1)
        if grad_bias is not None:
            add_to_bias(grad_bias, by_row, step, columns)
        grad_q.baddbmm_(grad_scores, k[:, columns], alpha=scoring.scale)
        grad_k[:, columns] = (grad_scores.mT @ flat_q).mul_(scoring.scale)
    step.put(grads[0], grad_q.view_as(q))
    step.add_to_keys(grads[1], grad_k)
    step.add_to_keys(grads[2], grad_v)
    if grad_rows is not None:
        step.put(grad_rows, totals)


def _weights(
    q: Tensor,
    row_bias: Tensor,
    k: Tensor,
    step: Step,
    columns: slice,
    added: AddedMasks,
    scoring: Scoring,
    scratch: _Scratch,
) -> Tensor:
    """Weights of some columns in scratch memory, ``(n, groups * rows, columns)``, exactly 0 where masked."""
    n, groups, rows, _ = q.shape
    scores = scratch.take((n, groups * rows, k.shape[1]))
    shift = row_bias.reshape(n, groups * rows, 1)
    torch.baddbmm(shift, q.reshape(n, groups * rows, -1), k.mT, alpha=scoring.scale, out=scores)
    add_to_scores(scores, q.shape, step, columns, added, scoring)
    return scores.sigmoid_()


def _stretches(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Cut the keys of a step: what the parts give adds up."""
    at_once = max(_FEWEST_KEYS, _SCORES_AT_ONCE // max(1, q.shape[0] * q.shape[1] * q.shape[2]))
    for start in range(0, k.shape[1], at_once):
        yield slice(start, min(k.shape[1], start + at_once))


class _Scratch:
    """Memory that one step after the other uses: new pages for each would cost more than what is computed."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return a contiguous tensor of any values, valid until the next call."""
        size = 1
        for axis in shape:
            size *= axis
        if self._memory.numel() < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)
