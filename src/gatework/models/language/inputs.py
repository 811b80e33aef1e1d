"""What a call of a language model is given besides tokens, checked: padding, and packed documents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gatework.layers.sequence.packed_documents import PackedDocuments


def check_padding(mask: Tensor | None, *, cached: bool) -> None:
    """Refuse a mask that pads anywhere but after the tokens, where padding changes nothing earlier.

    Args:
        mask: ``(batch, length)``, 0 at padding, or ``None``.
        cached: Whether states are kept or continued, which padding would enter.

    Raises:
        ValueError: If the mask has another rank, or pads on the left or what enters a state.
    """
    if mask is None or bool(mask.all()):
        return
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must have shape (batch, length), got {tuple(mask.shape)}")
    if bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "attention_mask pads on the left, which would enter the mixers' states; pad on the right, "
            "or generate for prompts of equal length"
        )
    if cached:
        raise ValueError(
            "attention_mask pads sequences whose state is kept (use_cache=True); give prompts of equal length"
        )


@torch.compiler.disable  # type: ignore[untyped-decorator] # a graph for these documents serves no other batch
def packed_documents(
    seq_idx: Tensor, shape: tuple[int, int], *, mask: Tensor | None, cached: bool, most_positions: int | None
) -> PackedDocuments:
    """Find the documents of a batch, and refuse what packed documents do not go with.

    Args:
        seq_idx: Number of the document of each position, -1 at padding.
        shape: Rows and length of the tokens.
        mask: The attention mask that was also given, or ``None``.
        cached: Whether states are kept or continued.
        most_positions: Longest document that there are positions for; ``None`` for any.

    Raises:
        TypeError: If ``seq_idx`` does not hold integers.
        ValueError: If it has another shape, comes with padding in the mask or a cache, or holds a document
            that is too long.
    """
    if tuple(seq_idx.shape) != shape:
        raise ValueError(
            f"seq_idx must have the shape of the tokens, (rows, length) = {shape}, got {tuple(seq_idx.shape)}"
        )
    if cached:
        raise ValueError(
            "seq_idx packs several documents into a row, whose state cannot be kept or continued: give it "
            "without past_key_values and use_cache"
        )
    if mask is not None and not bool(mask.all()):
        raise ValueError("seq_idx was given, and padding in attention_mask: say it by -1 in seq_idx alone")
    documents = PackedDocuments.from_seq_idx(seq_idx)
    longest = max(documents.lengths, default=0)
    if most_positions is not None and longest > most_positions:
        raise ValueError(
            f"document of {longest} tokens is longer than the position table, "
            f"learned_positions={most_positions}"
        )
    return documents


def labels_within_documents(labels: Tensor, seq_idx: Tensor | None) -> Tensor:
    """Shift labels by one: what comes after each position, -100 where that is another document or nothing."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    if seq_idx is None:
        return shifted
    ends = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (0, 1), value=True)
    return shifted.masked_fill(ends | (seq_idx < 0), -100)
