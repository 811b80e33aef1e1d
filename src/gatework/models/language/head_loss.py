"""The loss of a language model's head, without holding the logits of all positions at once.

With thousands of tokens in the vocabulary, logits are the largest tensors of a training step by far: 32,768
positions and 4,096 tokens make half a gigabyte, and automatic differentiation holds three such tensors. Large
batches are therefore taken in pieces, and what the backward pass needs of a piece is computed with it.

PyTorch's ``linear_cross_entropy`` does so too, but is younger than the oldest PyTorch supported here, hides
its arithmetic from what counts operations, and gives wrong second derivatives without an error.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

# From this many logits on a batch is taken in pieces of so many rows: enough for products of matrices to run
# at full speed, few enough for the logits of common vocabularies to stay in the cache.
_MOST_LOGITS, _PIECE_ROWS = 2**24, 512


def head_loss(
    head: nn.Module, hidden: Float[Tensor, "labelled dim"], labels: Int[Tensor, " labelled"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of ``head(hidden)`` in nats, computed in at least float32.

    Large batches are taken in pieces if the head is a plain linear layer without bias; they give no second
    derivatives.

    Args:
        head: Maps channels to logits.
        hidden: Channels at the labelled positions.
        labels: The token that each should predict.

    Returns:
        The mean; zero where nothing is labelled.
    """
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and torch.is_grad_enabled() and _in_pieces(head, weight, hidden):
        total = _sum_in_pieces(weight, hidden, labels)
    else:
        logits = head(hidden)
        total = F.cross_entropy(logits.to(_accurate(logits.dtype)), labels, reduction="sum")
    return total / max(labels.numel(), 1)


def _in_pieces(head: nn.Module, weight: Tensor, hidden: Tensor) -> bool:
    """Whether the logits are many, and nothing but a product with a matrix in this process makes them."""
    return (
        len(hidden) * len(weight) >= _MOST_LOGITS
        and type(head) is nn.Linear
        and getattr(head, "bias", None) is None
        and type(weight) in (nn.Parameter, Tensor)  # a sharded one is neither
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not torch.compiler.is_compiling()  # which fuses by itself
    )


def _sum_in_pieces(weight: Tensor, hidden: Tensor, labels: Tensor) -> Tensor:
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        total: Tensor = _SumInPieces.apply(hidden.to(kind), weight.to(kind), labels)
    return total


def _accurate(kind: torch.dtype) -> torch.dtype:
    return torch.promote_types(kind, torch.float32)


class _SumInPieces(torch.autograd.Function):
    """Sum of cross-entropies; the gradients are computed on the way, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        accurate = _accurate(hidden.dtype)
        total = hidden.new_zeros((), dtype=accurate)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=accurate) if ctx.needs_input_grad[1] else None
        # Fresh memory for the logits of each piece would cost a third of the time.
        held = hidden.new_empty(min(_PIECE_ROWS, len(hidden)), len(weight))
        pieces = zip(*(each.split(_PIECE_ROWS) for each in (hidden, labels, hidden_grad)), strict=True)
        for rows, wanted, grad in pieces:
            logits = torch.mm(rows, weight.T, out=held[: len(rows)]).to(accurate)
            losses, errors = _losses_and_errors(logits, wanted)
            total += losses.sum()
            errors = errors.to(rows.dtype)
            torch.mm(errors, weight, out=grad)
            if weight_grad is not None and accurate == rows.dtype:
                torch.addmm(weight_grad, errors.T, rows, out=weight_grad)
            elif weight_grad is not None:
                weight_grad += errors.T @ rows
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"a language model's loss over {_MOST_LOGITS:,} logits and more has no second derivatives "
                "(create_graph=True): train on smaller batches"
            )
        hidden_grad, weight_grad = ctx.saved_tensors
        by_weight = None if weight_grad is None else (weight_grad * grad).to(hidden_grad.dtype)
        return (hidden_grad * grad).to(hidden_grad.dtype), by_weight, None


def _losses_and_errors(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies, and their derivative by the logits, whose memory it takes."""
    place = labels[:, None]
    highest, at_label = logits.amax(1, keepdim=True), logits.gather(1, place)
    weights = logits.sub_(highest).exp_()
    sums = weights.sum(1, keepdim=True)
    probabilities = weights.div_(sums)
    errors = probabilities.scatter_add_(1, place, probabilities.new_full(place.shape, -1))
    return sums.log() + highest - at_label, errors
