"""What tokens of one chunk see of each other through the decay between them.

Products of decay factors are built up by halving, from ``exp(g)`` of single tokens: nothing is divided, no
exponent is positive and no running sum is subtracted from another. A token that wipes the state out therefore
leaves the decays after it as exact as those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

#: When a token reads the state: after it was added itself, decayed but not yet changed, or before anything.
When = Literal["after", "decayed", "before"]

#: Scores by read and by key, reads from the start, keys to the end, decay of the whole chunk.
Decayed = tuple[list[list[Tensor]], list[Tensor], list[Tensor], Tensor | None]


def decayed_scores(
    reads: Sequence[Tensor], when: Sequence[When], keys: Sequence[Tensor], log_decay: Tensor | None
) -> Decayed:
    """Score every read against every earlier key of its chunk, damped by the decay between the two.

    With ``c`` the running sum of ``log_decay``, read ``i`` and key ``j <= i`` of one chunk score
    ``sum_d read[i, d] key[j, d] exp(c[i, d] - c[j, d])``. Reads "after" include ``j = i``; reads "decayed" do
    not; reads "before" do not either, and lack the decay of their own token.

    Args:
        reads: Vectors that read the state, each (..., size, key_dim).
        when: When each of them reads.
        keys: Vectors that were written under, each of the same shape.
        log_decay: At most zero, (..., size, 1) or (..., size, key_dim), or ``None`` for no decay; with one,
            ``size`` must be a power of two.

    Returns:
        Scores (..., size, size) by read and key; reads as they see the state at the start of the chunk; keys
        as they are left at its end; and the factor over the whole chunk, (..., 1 or key_dim), ``None`` for 1.
    """
    if log_decay is None:
        products = [[read @ key.mT for key in keys] for read in reads]
        masked = [
            [product.tril(0 if moment == "after" else -1) for product in row]
            for row, moment in zip(products, when, strict=True)
        ]
        return masked, list(reads), list(keys), None
    if log_decay.shape[-1] == 1:
        return _per_head(reads, when, keys, log_decay)
    scores, starts, ends, whole = _halve(reads, when, keys, log_decay)
    for row, read, moment in zip(scores, reads, when, strict=True):
        if moment == "after":
            row[:] = [s + torch.diag_embed((read * key).sum(-1)) for s, key in zip(row, keys, strict=True)]
    return scores, starts, ends, whole


def _per_head(
    reads: Sequence[Tensor], when: Sequence[When], keys: Sequence[Tensor], log_decay: Tensor
) -> Decayed:
    """One decay for all channels: plain scores times the factors that ones of a single channel score."""
    one = torch.ones_like(log_decay)
    [[damping]], [start], [end], whole = _halve([one], ["decayed"], [one], log_decay)
    with_self = damping + torch.eye(one.shape[-2], dtype=one.dtype, device=one.device)
    factors = {
        "after": (with_self, start),
        "decayed": (damping, start),
        "before": (_one_later(with_self, 0.0), _one_later(start, 1.0)),
    }
    scores = [
        [read @ key.mT * factors[moment][0] for key in keys] for read, moment in zip(reads, when, strict=True)
    ]
    starts = [read * factors[moment][1] for read, moment in zip(reads, when, strict=True)]
    return scores, starts, [key * end for key in keys], whole


def _one_later(x: Tensor, first: float) -> Tensor:
    """Move tokens back by one, so that each has what its predecessor had."""
    return F.pad(x[..., :-1, :], (0, 0, 1, 0), value=first)


def _halve(
    reads: Sequence[Tensor], when: Sequence[When], keys: Sequence[Tensor], log_decay: Tensor
) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor], Tensor]:
    """:func:`decayed_scores` for one decay per channel of the vectors, without the pairs ``j = i``."""
    # A vector may be read and key at once, which the compiler refuses to see twice.
    again = (key.view_as(key) for key in keys)
    vectors = (*reads, *again)
    flat: tuple[Tensor, ...]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (log_decay, *vectors)):
        flat = _Halving.apply(log_decay, tuple(when), *vectors)
    else:  # not through autograd: the compiler refuses a function that saves for no one
        with torch.no_grad():
            flat = _halved(log_decay, tuple(when), *vectors)
    pairs = len(reads) * len(keys)
    rows = [list(flat[i : i + len(keys)]) for i in range(0, pairs, len(keys))]
    starts, ends = flat[pairs : pairs + len(reads)], flat[pairs + len(reads) : -1]
    return rows, list(starts), list(ends), flat[-1]


class _Halving(torch.autograd.Function):
    """Scores of every pair of tokens that lie in different halves of some block of the chunk.

    Blocks of 2, 4, 8, ... tokens are cut in half. Between the halves, reads decay from the middle on and
    keys decay towards it: both factors are at most one and are the decay of the pair together. Gradients need
    no further pass for the decay: where ``exp(c_i - c_j)`` weighs a product of a read and a key,
    ``dL/dc_i = read_i * dL/dread_i`` and ``dL/dc_j = -key_j * dL/dkey_j`` (arXiv:2312.06635, appendix).
    """

    @staticmethod
    def forward(ctx: Any, log_decay: Tensor, when: tuple[When, ...], *vectors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(log_decay, *vectors)
        ctx.when = when
        return _halved(log_decay, when, *vectors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Torch differentiates these lines for gradients of gradients: no factor of a product may change.
        log_decay, *vectors = ctx.saved_tensors
        when: tuple[When, ...] = ctx.when
        reads, keys = vectors[: len(when)], vectors[len(when) :]
        pairs = len(reads) * len(keys)
        grad_scores = [grads[i : i + len(keys)] for i in range(0, pairs, len(keys))]
        grad_starts, grad_ends = grads[pairs : pairs + len(reads)], grads[pairs + len(reads) : -1]
        grad_reads, grad_keys = [torch.zeros_like(x) for x in reads], [torch.zeros_like(x) for x in keys]
        start, before, end = _single_tokens(log_decay, when)
        half = 1
        while half < log_decay.shape[-2]:
            factors = [_half(_factor(moment, start, before), half, 1) for moment in when]
            to_middle = _half(end, half, 0)
            late = [_half(read, half, 1) * factor for read, factor in zip(reads, factors, strict=True)]
            early = [_half(key, half, 0) * to_middle for key in keys]
            blocks = [[_pairs(grad, half) for grad in row] for row in grad_scores]
            for grad, row, factor in zip(grad_reads, blocks, factors, strict=True):
                _half(grad, half, 1).add_(_sum_of_products(row, early) * factor)
            for grad, column in zip(grad_keys, zip(*blocks, strict=True), strict=True):
                _half(grad, half, 0).add_(_sum_of_products([b.mT for b in column], late) * to_middle)
            start, before, end = _merge(start, before, end, half)
            half *= 2
        for grad, moment, grad_start in zip(grad_reads, when, grad_starts, strict=True):
            grad.add_(grad_start * _factor(moment, start, before))
        at_end = grads[-1] * start[..., -1, :]
        for grad, key, grad_end in zip(grad_keys, keys, grad_ends, strict=True):
            decayed = grad_end * end
            grad.add_(decayed)
            at_end = at_end + (decayed * key).sum(-2)
        grad_running = -sum(key * grad for key, grad in zip(keys, grad_keys, strict=True))
        for grad, read, moment in zip(grad_reads, reads, when, strict=True):
            product = read * grad
            if moment == "before":
                product = F.pad(product[..., 1:, :], (0, 0, 0, 1))
            grad_running = grad_running + product
        later = torch.ones(log_decay.shape[-2], log_decay.shape[-2], dtype=at_end.dtype, device=at_end.device)
        grad_decay = later.triu() @ grad_running + at_end.unsqueeze(-2)
        return grad_decay, None, *grad_reads, *grad_keys


def _halved(log_decay: Tensor, when: tuple[When, ...], *vectors: Tensor) -> tuple[Tensor, ...]:
    """The forward pass of :class:`_Halving`: scores, reads from the start, keys to the end, whole decay."""
    reads, keys = vectors[: len(when)], vectors[len(when) :]
    size = log_decay.shape[-2]
    shape = (*log_decay.shape[:-2], size, size)
    scores = [[key.new_zeros(shape) for key in keys] for _ in reads]
    start, before, end = _single_tokens(log_decay, when)
    half = 1
    while half < size:
        late = [
            _half(read, half, 1) * _half(_factor(moment, start, before), half, 1)
            for read, moment in zip(reads, when, strict=True)
        ]
        to_middle = _half(end, half, 0)
        early = [_half(key, half, 0) * to_middle for key in keys]
        for row, read in zip(scores, late, strict=True):
            for score, key in zip(row, early, strict=True):
                _pairs(score, half).copy_(read @ key.mT)
        start, before, end = _merge(start, before, end, half)
        half *= 2
    starts = [read * _factor(moment, start, before) for read, moment in zip(reads, when, strict=True)]
    return (
        *(score for row in scores for score in row),
        *starts,
        *(key * end for key in keys),
        start[..., -1, :].clone(),
    )


def _single_tokens(log_decay: Tensor, when: Sequence[When]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Decay from the start of a block of one token to reads after and before its decay, and to its end."""
    before = torch.ones_like(log_decay) if "before" in when else None
    return log_decay.exp(), before, torch.ones_like(log_decay)


def _merge(
    start: Tensor, before: Tensor | None, end: Tensor, half: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The three factors of :func:`_single_tokens` for blocks of ``2 * half`` tokens instead of ``half``."""
    over_first, over_second = _half(start, half, 0)[..., -1:, :], _half(start, half, 1)[..., -1:, :]
    if not torch.is_grad_enabled():
        _half(end, half, 0).mul_(over_second)
        _half(start, half, 1).mul_(over_first)
        if before is not None:
            _half(before, half, 1).mul_(over_first)
        return start, before, end
    return (
        _join(_half(start, half, 0), _half(start, half, 1) * over_first),
        None if before is None else _join(_half(before, half, 0), _half(before, half, 1) * over_first),
        _join(_half(end, half, 0) * over_second, _half(end, half, 1)),
    )


def _factor(moment: When, start: Tensor, before: Tensor | None) -> Tensor:
    return start if moment != "before" or before is None else before


def _half(x: Tensor, half: int, which: int) -> Tensor:
    """The first or second half of every block of ``2 * half`` tokens: (..., blocks, half, channels)."""
    blocks: Tensor = x.unflatten(-2, (-1, 2, half))
    return blocks.select(-3, which)


def _join(first: Tensor, second: Tensor) -> Tensor:
    """Undo :func:`_half`."""
    return torch.stack([first, second], -3).flatten(-4, -2)


def _pairs(scores: Tensor, half: int) -> Tensor:
    """The scores of second halves against the first half of their block: (..., blocks, half, half)."""
    blocks: Tensor = scores.unflatten(-1, (-1, 2, half)).unflatten(-4, (-1, 2, half))
    return blocks.select(-5, 1).select(-2, 0).diagonal(0, -4, -2).movedim(-1, -3)


def _sum_of_products(blocks: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    return sum((b @ x for b, x in zip(blocks[1:], vectors[1:], strict=True)), blocks[0] @ vectors[0])
