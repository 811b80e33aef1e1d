"""What a call of attention asks for besides queries, keys and values: the one argument of every engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_int, check_sizes
from gatework.masks import Mask


@dataclass(frozen=True)
class Alibi:
    """The bias ``-slopes[h] * |i + query_offset - j|`` between query ``i`` and key ``j`` (arXiv:2108.12409).

    Given to :func:`gatework.ops.attention` as its ``bias``; the blocked engine and FlexAttention never hold
    it as a tensor.

    Attributes:
        slopes: One number per query head.
        query_offset: Position of the first query, where keys are counted from 0.

    Raises:
        ValueError: If there is no slope, or one is not finite.
        TypeError: If the offset is not an integer.
    """

    slopes: tuple[float, ...]
    query_offset: int = 0

    def __post_init__(self) -> None:
        slopes = tuple(float(slope) for slope in self.slopes)
        if not slopes or not all(map(math.isfinite, slopes)):
            raise ValueError(f"slopes must be finite numbers, one per query head, got {self.slopes}")
        check_int("query_offset", self.query_offset)
        object.__setattr__(self, "slopes", slopes)

    @classmethod
    def for_heads(cls, num_heads: int, *, query_offset: int = 0) -> Alibi:
        """Return the paper's slopes: a geometric sequence, ``2 ** (-8 h / num_heads)`` for powers of two.

        Other numbers of heads take the sequence of the power of two below them, and every second slope of
        the one above for the rest (section 3 and the authors' code).

        Raises:
            ValueError: If ``num_heads`` is not positive.
        """
        check_sizes(num_heads=num_heads)
        whole = 1 << (num_heads.bit_length() - 1)
        first = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
        between = [2 ** (-4 * (h + 1) / whole) for h in range(0, 2 * whole, 2)]
        return cls(tuple(first + between[: num_heads - whole]), query_offset)

    def to_dense(
        self, q_length: int, kv_length: int, like: Tensor
    ) -> Float[Tensor, "heads q_length kv_length"]:
        """Return the bias as a tensor, in dtype and device of ``like``, float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        queries = torch.arange(q_length, device=like.device) + self.query_offset
        distance = (queries[:, None] - torch.arange(kv_length, device=like.device)).abs().to(dtype)
        return torch.tensor(self.slopes, dtype=dtype, device=like.device)[:, None, None] * -distance


class Options(NamedTuple):
    """The checked arguments of :func:`gatework.ops.attention`, with ``scale`` filled in."""

    mask: Mask | Tensor | None
    bias: Tensor | Alibi | None
    scale: float
    softcap: float | None
    sinks: Tensor | None
    dropout_p: float
    return_lse: bool


#: Outputs, and the log-sum-exp if it was asked for.
Result = tuple[Tensor, Tensor | None]


def _nothing(q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
    """Refuse nothing."""


class Engine(NamedTuple):
    """One way to compute attention.

    Attributes:
        run: Computes the result from q, k, v and the options.
        refusal: Says why this engine cannot do what is asked; ``None`` if it can.
    """

    run: Callable[[Tensor, Tensor, Tensor, Options], Result]
    refusal: Callable[[Tensor, Tensor, Tensor, Options], str | None] = _nothing
