"""What a call of attention asks for besides queries, keys and values: the one argument of every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from gatework.masks import Mask


class Options(NamedTuple):
    """The checked arguments of :func:`gatework.ops.attention`, with ``scale`` filled in."""

    mask: Mask | Tensor | None
    bias: Tensor | None
    scale: float
    softcap: float | None
    sinks: Tensor | None
    dropout_p: float
    return_lse: bool


#: Outputs, and the log-sum-exp if it was asked for.
Result = tuple[Tensor, Tensor | None]


def _nothing(options: Options) -> None:
    """Refuse nothing."""


class Engine(NamedTuple):
    """One way to compute attention.

    Attributes:
        run: Computes the result from q, k, v and the options.
        refusal: Says why this engine cannot do what the options ask; ``None`` if it can.
    """

    run: Callable[[Tensor, Tensor, Tensor, Options], Result]
    refusal: Callable[[Options], str | None] = _nothing
