"""Sequences cut into chunks that are walked through side by side, position by position.

Used by recurrences of single numbers: selective scan and WKV.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

#: Tokens by position in their chunk: ``(position, batch, chunks, width)``.
Positions = Tensor


def to_positions(tensor: Tensor, size: int) -> Positions:
    """Cut ``(batch, length, width)`` into chunks of ``size`` tokens, zeros at the end; positions first."""
    tensor = pad(tensor, (0, 0, 0, -tensor.shape[1] % size))
    chunks: Tensor = tensor.unflatten(1, (tensor.shape[1] // size, size))
    return chunks.movedim(2, 0).contiguous()


def to_tokens(positions: Positions, length: int) -> Tensor:
    """Undo :func:`to_positions` for sequences of ``length`` tokens."""
    return positions.movedim(0, 2).flatten(1, 2)[:, :length].contiguous()
