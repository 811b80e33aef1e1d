"""Where each score of a sequence stands among those before it.

Used by look-ups that select the best positions so far (arXiv:2312.04927, section 5).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def causal_ranks_reference(scores: Float[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """The definition, position by position: ``rank[t] = #{s < t: scores[s] >= scores[t]}``."""
    ranks = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    for t in range(scores.shape[1]):
        ranks[:, t] = (scores[:, :t] >= scores[:, t : t + 1]).sum(1)
    return ranks


def causal_ranks(scores: Float[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """Count the earlier scores that are at least as high, in O(length log length).

    Computes what :func:`causal_ranks_reference` defines: rank 0 is a new highest score. With the scores
    replaced by their places in descending order, it counts earlier smaller places, bit by bit: at each bit,
    places that agree in all higher bits lie together, in order of time, and each place with that bit set is
    larger than all those before it without.
    """
    batch, length = scores.shape
    # Equal scores get increasing places, so that the earlier one counts as the higher.
    order = scores.argsort(dim=1, descending=True, stable=True)
    steps = torch.arange(length, device=scores.device).expand(batch, length)
    place = torch.empty_like(order).scatter_(1, order, steps)
    time, ranks = steps, torch.zeros_like(order)
    for bit in reversed(range(max(length - 1, 0).bit_length())):
        # Groups of equal higher bits: 2^(bit+1) consecutive places each, so they also begin at known indices.
        start = place >> (bit + 1) << (bit + 1)
        is_set = (place >> bit & 1).bool()
        zeros = torch.nn.functional.pad((~is_set).cumsum(1), (1, 0))
        before = zeros[:, :-1] - zeros.gather(1, start)
        ranks = ranks.scatter_add(1, time, torch.where(is_set, before, 0))
        # Stable partition of each group: first those without the bit, then those with it.
        ones_before = steps - start - before
        in_group = start + torch.where(is_set, (1 << bit) + ones_before, before)
        place, time = (torch.empty_like(x).scatter(1, in_group, x) for x in (place, time))
    return ranks
