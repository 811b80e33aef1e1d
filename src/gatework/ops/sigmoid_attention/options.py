"""What a call of sigmoid attention asks for besides queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from gatework.masks import Mask


class SigmoidOptions(NamedTuple):
    """The checked arguments of :func:`gatework.ops.sigmoid_attention`, in one form each.

    The score of query ``i`` and key ``j`` of head ``h`` is ``scale * q_i . k_j + row_bias[h, i] +
    pair_bias[h, i, j] - slopes[h] * |i + query_offset - j|``.

    Attributes:
        mask: Which pairs are allowed.
        row_bias: What is the same for all keys, ``(batch or 1, heads or 1, q_length or 1)``, in float32 at
            least.
        pair_bias: What is not, ``(batch or 1, heads or 1, q_length or 1, kv_length)``, or ``None``.
        slopes: Of ALiBi, ``(batch or 1, heads)``, or ``None``.
        query_offset: Position of the first query, where keys are counted from 0.
        scale: Factor on the products.
        dropout_p: Probability of dropping a weight.
    """

    mask: Mask | Tensor | None
    row_bias: Tensor
    pair_bias: Tensor | None
    slopes: Tensor | None
    query_offset: int
    scale: float
    dropout_p: float


class SigmoidEngine(NamedTuple):
    """One way to compute sigmoid attention.

    Attributes:
        run: Computes the outputs from q, k, v and the options.
        refusal: Says why this engine cannot do what is asked; ``None`` if it can.
    """

    run: Callable[[Tensor, Tensor, Tensor, SigmoidOptions], Tensor]
    refusal: Callable[[Tensor, Tensor, Tensor, SigmoidOptions], str | None]
