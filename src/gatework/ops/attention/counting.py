"""How much the blocked engine computes for a plan: for the choice of an engine, and for counters of FLOPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gatework.ops.attention.plan import Plan, unpack


def tile_pairs(plan: Plan) -> Tensor:
    """Count the pairs of a query and a key in the tiles of each pattern, those that a mask forbids too."""
    keys = _sums(plan.run_length, plan.tile_run)
    return _sums(keys * plan.tile_query.diff(), plan.pattern_tile)


def allowed_pairs(plan: Plan) -> Tensor:
    """Count the pairs that each pattern allows."""
    rows = plan.tile_query.diff()
    tile = torch.repeat_interleave(torch.arange(len(rows)), plan.tile_piece.diff())
    area = rows[tile] * plan.piece_width
    before = torch.cat([plan.pool.new_zeros(1, dtype=torch.int64), plan.pool.cumsum(0, dtype=torch.int64)])
    forbidden = area - (before[plan.piece_mask + area] - before[plan.piece_mask])
    return tile_pairs(plan) - _sums(_sums(forbidden, plan.tile_piece), plan.pattern_tile)


def _sums(values: Tensor, edges: Tensor) -> Tensor:
    """Sum stretches of values, from each edge to the next."""
    before = torch.cat([values.new_zeros(1, dtype=torch.int64), values.cumsum(0, dtype=torch.int64)])
    return before[edges.long()].diff()


def flops(q: Tensor, v: Tensor, packed: Tensor, products: int) -> int:
    """Count ``products`` matrix products over the allowed pairs, two operations for each multiply-add."""
    plan = unpack(packed)
    per_head = allowed_pairs(plan)[plan.pattern_of.long()]
    pairs = int(per_head.expand(q.shape[0], q.shape[1]).sum())
    return products * pairs * (q.shape[3] + v.shape[3])


@register_flop_formula(torch.ops.gatework.blocked_attention, get_raw=True)
def _forward_flops(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
    """Scores and outputs."""
    return flops(q, v, rest[3], 2)


@register_flop_formula(torch.ops.gatework.blocked_attention_backward, get_raw=True)
def _backward_flops(
    grad: Tensor,
    grad_lse: Tensor,
    y: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *rest: Any,
    out_val: Any = None,
) -> int:
    """Scores once more, and the four products of the gradients."""
    return flops(q, v, rest[3], 5)
