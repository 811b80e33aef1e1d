"""What a recall task gives: examples that belong together, and what they are called in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

#: The label of positions that are not scored; PyTorch's cross entropy ignores it by default.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class TokenSegment:
    """Examples of one task setting, as tokens.

    Attributes:
        inputs: Token ids.
        labels: The token that should come next, or :data:`IGNORED`. Labels are already shifted: the
            one at a position is predicted from the inputs up to and including that position.
        slices: What the setting is called, for scores by slice (``{"num_kv_pairs": 4, ...}``).
    """

    inputs: Int64[Tensor, "examples length"]
    labels: Int64[Tensor, "examples length"]
    slices: dict[str, int]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, eq=False)
class EmbeddedSegment:
    """Examples of one task setting, as vectors, with a class for each of the last positions.

    Attributes:
        inputs: One vector per position.
        labels: The class asked for at each of the last ``queries`` positions.
        slices: What the setting is called, for scores by slice.
    """

    inputs: Float[Tensor, "examples length channels"]
    labels: Int64[Tensor, "examples queries"]
    slices: dict[str, int]

    def __len__(self) -> int:
        return len(self.inputs)


class TokenBatch(NamedTuple):
    """Some rows of token data.

    Attributes:
        inputs: Token ids, ``(rows, length)``.
        labels: What should come next, ``(rows, length)``, -100 where nothing is scored.
        slices: What the setting of each row is called, one entry per row; empty if there is only one.
        seq_idx: Number of the document that each position belongs to, ``(rows, length)``, -1 at padding;
            ``None`` if every row is one context.
    """

    inputs: Tensor
    labels: Tensor
    slices: list[dict[str, int]]
    seq_idx: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens that are read, padding not counted."""
        return self.inputs.numel() if self.seq_idx is None else int((self.seq_idx >= 0).sum())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """Return the same batch on a device."""
        inputs, labels = (part.to(device, non_blocking=non_blocking) for part in (self.inputs, self.labels))
        seq_idx = None if self.seq_idx is None else self.seq_idx.to(device, non_blocking=non_blocking)
        return TokenBatch(inputs, labels, self.slices, seq_idx)
