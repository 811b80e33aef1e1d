"""Exact attention over the tiles of a plan with PyTorch's own operators, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gatework.ops.attention.steps import AddedMasks, Gather, Schedule, Step

#: Keys whose scores are held at a time.
_COLUMNS_AT_ONCE = 4096

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Scoring(NamedTuple):
    """How scores are made from products: see :func:`gatework.ops.attention`.

    Attributes:
        scale: Factor on the products.
        softcap: Bound of the scaled products, or ``None``.
        bias: Added to the scores, ``(batch or 1, heads or 1, q_length, kv_length)``, or ``None``.
        slopes: ``slopes[b, h] * |i + query_offset - j|`` is subtracted, or ``None``.
        query_offset: Position of the first query, for the slopes.
        dropout_p: Probability of dropping a weight.
        seed: What decides which weights are dropped.
    """

    scale: float
    softcap: float | None = None
    bias: Tensor | None = None
    slopes: Tensor | None = None
    query_offset: int = 0
    dropout_p: float = 0.0
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether scores are products, scaled, and nothing else."""
        return self.softcap is None and self.bias is None and self.slopes is None and self.dropout_p == 0


def forward(q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Return outputs and log-sum-exp, in the dtype of the inputs."""
    out = q.new_zeros(*q.shape[:3], v.shape[3])
    lse = q.new_full(q.shape[:3], -torch.inf)
    for number, step in enumerate(schedule.steps):
        keys = step.keys(k)
        if keys.shape[1] == 0 or keys.shape[0] == 0:
            continue
        parts = step.queries(q), keys, step.keys(v)
        if scoring.is_plain and scoring.scale > 0 and q.shape[3] == v.shape[3]:
            y, logs = _fused(*parts, step, schedule.added, scoring.scale)
        else:
            y, logs = _streamed(*parts, step, schedule.added, scoring, number)
        step.put(out, y)
        step.put(lse, logs)
    return out, lse


def backward(
    grad: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    schedule: Schedule,
    scoring: Scoring,
    bias: Tensor | None = None,
) -> list[Tensor]:
    """Return the gradients of queries, keys and values, and of ``bias`` if it is given.

    With ``p_ij = exp(s_ij - lse_i)`` and the gradient ``g_i`` of output ``i``, the gradient of a score is
    ``p_ij * (g_i . v_j - delta_i)``, where ``delta_i`` is ``g_i . o_i`` less the gradient of ``lse_i``.
    """
    grads = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    grad_bias = None if bias is None else torch.zeros_like(bias)
    lse = lse.masked_fill(lse.isneginf(), torch.inf)  # weights of rows without keys are zero
    for number, step in enumerate(schedule.steps):
        keys = step.keys(k)
        if keys.shape[1] == 0 or keys.shape[0] == 0:
            continue
        _backward_step(
            step.queries(grad),
            step.queries(delta),
            step.queries(q),
            keys,
            step.keys(v),
            step.queries(lse),
            step,
            schedule.added,
            scoring,
            number,
            grads,
            grad_bias,
        )
    return [*grads] if grad_bias is None else [*grads, grad_bias]


def _fused(
    q: Tensor, k: Tensor, v: Tensor, step: Step, added: AddedMasks, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp of one step by PyTorch's fused operator: tiles and groups are its heads."""
    n, groups, rows, dim = q.shape
    tiles = _tiles(step)
    mask = nothing = None
    if step.masks:
        mask, nothing = added.whole(step, k.shape[1], q.dtype), added.nothing(step, k.shape[1])
        mask = mask.repeat_interleave(groups, 0)[None] if len(mask) > 1 and groups > 1 else mask[None]
    y, lse = _flash(
        q.reshape(n // tiles, tiles * groups, rows, dim),
        k.reshape(n // tiles, tiles, *k.shape[1:]),
        v.reshape(n // tiles, tiles, *v.shape[1:]),
        0.0,
        False,
        attn_mask=mask,
        scale=scale,
    )
    lse = lse.to(q.dtype).view(n // tiles, tiles, groups, rows)
    if nothing is not None:  # where the operator says 0
        lse = lse.masked_fill(nothing[:, None], -torch.inf)
    return y.reshape(n, groups, rows, dim), lse.reshape(n, groups, rows)


def _streamed(
    q: Tensor, k: Tensor, v: Tensor, step: Step, added: AddedMasks, scoring: Scoring, number: int
) -> tuple[Tensor, Tensor]:
    """Outputs and log-sum-exp of one step, some keys at a time (arXiv:2112.05682)."""
    n, groups, rows, _ = q.shape
    peak = q.new_full((n, groups * rows, 1), -torch.inf)
    total = q.new_zeros(n, groups * rows, 1)
    y = q.new_zeros(n, groups * rows, v.shape[2])
    for columns in _columns(k.shape[1]):
        scores, _ = _scores(q, k[:, columns], step, columns, added, scoring)
        highest = torch.maximum(peak, scores.amax(-1, keepdim=True))
        finite = highest.masked_fill(highest.isneginf(), 0.0)
        weights = scores.sub_(finite).exp_()
        rescale = torch.exp(peak - finite)
        total = total.mul_(rescale).add_(weights.sum(-1, keepdim=True))
        keep = kept_weights(weights, scoring, number, columns.start)
        y = y.mul_(rescale).baddbmm_(weights if keep is None else weights * keep, v[:, columns])
        peak = highest
    lse = torch.log(total).add_(peak.masked_fill(peak.isneginf(), 0.0))
    return y.div_(total.masked_fill(total == 0, 1.0)).view(n, groups, rows, v.shape[2]), lse.view(
        n, groups, rows
    )


def _backward_step(
    grad: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    step: Step,
    added: AddedMasks,
    scoring: Scoring,
    number: int,
    grads: tuple[Tensor, Tensor, Tensor],
    grad_bias: Tensor | None,
) -> None:
    """Add the gradients of one step, some keys at a time."""
    grad = grad.flatten(1, 2)
    lse, delta = lse.flatten(1, 2)[..., None], delta.flatten(1, 2)[..., None]
    grad_q = torch.zeros_like(q).flatten(1, 2)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    for columns in _columns(k.shape[1]):
        scores, slope = _scores(q, k[:, columns], step, columns, added, scoring)
        weights = scores.sub_(lse).exp_()
        keep = kept_weights(weights, scoring, number, columns.start)
        grad_v[:, columns] = (weights if keep is None else weights * keep).mT @ grad
        grad_scores = grad @ v[:, columns].mT
        if keep is not None:
            grad_scores = grad_scores.mul_(keep)
        grad_scores = grad_scores.sub_(delta).mul_(weights)
        if grad_bias is not None:
            add_to_bias(grad_bias, grad_scores.view(len(q), *q.shape[1:3], -1), step, columns)
        if slope is not None:
            grad_scores = grad_scores.mul_(slope)
        grad_q.baddbmm_(grad_scores, k[:, columns], alpha=scoring.scale)
        grad_k[:, columns] = (grad_scores.mT @ q.flatten(1, 2)).mul_(scoring.scale)
    step.put(grads[0], grad_q.view_as(q))
    step.add_to_keys(grads[1], grad_k)
    step.add_to_keys(grads[2], grad_v)


def _columns(count: int) -> Iterator[slice]:
    for start in range(0, count, _COLUMNS_AT_ONCE):
        yield slice(start, min(count, start + _COLUMNS_AT_ONCE))


def _tiles(step: Step) -> int:
    return step.tiles if isinstance(step, Gather) else 1


def _scores(
    q: Tensor, k: Tensor, step: Step, columns: slice, added: AddedMasks, scoring: Scoring
) -> tuple[Tensor, Tensor | None]:
    """Scores of some columns, ``(n, groups * rows, columns)``, and their slope under a soft cap."""
    n, groups, rows, _ = q.shape
    scores = torch.bmm(q.reshape(n, groups * rows, -1), k.mT).mul_(scoring.scale)
    slope = None
    if scoring.softcap is not None:
        tanh = scores.div_(scoring.softcap).tanh_()
        slope = 1 - tanh * tanh
        scores = tanh * scoring.softcap
    add_to_scores(scores, q.shape, step, columns, added, scoring)
    return scores, slope


def add_to_scores(
    scores: Tensor, shape: torch.Size, step: Step, columns: slice, added: AddedMasks, scoring: Scoring
) -> None:
    """Add bias, slopes and masks to the scores of some columns, in place.

    Args:
        scores: ``(n, groups * rows, columns)``.
        shape: That of the step's queries, ``(n, groups, rows, dim)``.
        step: Where the scores are.
        columns: Of the step's keys.
        added: The masks of the schedule.
        scoring: What is added.
    """
    n, groups, rows, _ = shape
    tiles = _tiles(step)
    by_tile = scores.view(n // tiles, tiles, groups, rows, -1)
    if scoring.bias is not None:
        by_tile += _bias(scoring.bias, step, columns, groups).view_as(by_tile)
    if scoring.slopes is not None:
        by_tile -= _distances(scoring, step, columns, groups, n // tiles, scores.dtype)
    for first, allowed in step.masks:
        mask = added.piece(allowed, scores.dtype)
        start, stop = max(first, columns.start), min(first + mask.shape[2], columns.stop)
        if start < stop:
            part = by_tile[..., start - columns.start : stop - columns.start]
            part += mask[:, None, :, start - first : stop - first]


def kept_weights(weights: Tensor, scoring: Scoring, number: int, column: int) -> Tensor | None:
    """Which weights dropout keeps, times what it makes up for; the same whenever it is asked."""
    if scoring.dropout_p == 0:
        return None
    generator = torch.Generator().manual_seed(hash((scoring.seed, number, column)) & (2**63 - 1))
    kept = torch.rand(weights.shape, generator=generator, dtype=weights.dtype) >= scoring.dropout_p
    return kept.to(weights.dtype).div_(1 - scoring.dropout_p)


def _bias(bias: Tensor, step: Step, columns: slice, groups: int) -> Tensor:
    """The bias of a step's pairs, ``(n / tiles, tiles, groups, rows, columns)``."""
    queries, keys = step.positions()
    part = bias[step.heads.batch, step.heads.queries]
    pairs = part[:, :, queries[:, :, None], keys[:, None, columns]]
    by_tile: Tensor = pairs.unflatten(1, (-1, groups)).transpose(2, 3).flatten(0, 1)
    return by_tile


def _distances(
    scoring: Scoring, step: Step, columns: slice, groups: int, n: int, dtype: torch.dtype
) -> Tensor:
    """``slopes[b, h] * |i + query_offset - j|``, ``(n, tiles, groups, rows, columns)``."""
    assert scoring.slopes is not None
    queries, keys = step.positions()
    distances = (queries[:, :, None] + scoring.query_offset - keys[:, None, columns]).abs().to(dtype)
    slopes = scoring.slopes[step.heads.batch, step.heads.queries].to(dtype)
    scaled: Tensor = slopes.reshape(n, 1, groups, 1, 1) * distances[None, :, None]
    return scaled


def add_to_bias(into: Tensor, grad: Tensor, step: Step, columns: slice) -> None:
    """Add the gradients of a step's scores, ``(n, groups, rows, columns)``, to those of the bias."""
    queries, keys = step.positions()
    pairs = grad.view(-1, step.num_heads // step.groups, len(queries), *grad.shape[1:]).transpose(2, 3)
    pairs = pairs.reshape(len(pairs), step.num_heads, len(queries), *grad.shape[2:])
    one_batch, one_head, one_query, one_key = (size == 1 for size in into.shape)
    part = into[slice(None) if one_batch else step.heads.batch]
    part = part[:, slice(None) if one_head else step.heads.queries]
    summed = [axis for axis, one in enumerate((one_batch, one_head)) if one]
    if summed:
        pairs = pairs.sum(summed, keepdim=True)
    rows, cols = queries[:, :, None], keys[:, None, columns]
    batch, head = torch.arange(pairs.shape[0]), torch.arange(pairs.shape[1])
    index = (
        batch[:, None, None, None, None],
        head[:, None, None, None],
        torch.zeros_like(rows) if one_query else rows,
        torch.zeros_like(cols) if one_key else cols,
    )
    part.index_put_(index, pairs, accumulate=True)
