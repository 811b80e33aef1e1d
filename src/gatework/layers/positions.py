"""Positions of tokens: rotary embeddings of queries and keys."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatework.checks import check_positive


def rotary_embedding(
    x: Float[Tensor, "batch heads length head_dim"],
    *,
    start: int | Int[Tensor, " batch"] = 0,
    theta: float = 10000.0,
) -> Float[Tensor, "batch heads length head_dim"]:
    """Rotate each pair of channels of token ``t`` by an angle proportional to its position ``start + t``.

    With ``n = head_dim // 2`` and ``a = (start + t) * theta ** (-i / n)``, channels ``i`` and ``i + n``
    become ``x_i cos a - x_{i+n} sin a`` and ``x_{i+n} cos a + x_i sin a`` (arXiv:2104.09864, section 3.2;
    channels paired across the two halves as in Llama). The product of a rotated query and a rotated key
    depends on the difference of their positions only.

    Args:
        x: Queries or keys; half precisions are rotated in float32.
        start: Position of the first token, one for all sequences or one each.
        theta: Base of the wavelengths, which run from ``2 pi`` to ``2 pi * theta`` tokens.

    Returns:
        The rotated tensor, in the dtype of ``x``.

    Raises:
        ValueError: If ``head_dim`` is odd, or ``theta`` is not positive.
    """
    length, head_dim = x.shape[2:]
    if head_dim % 2:
        raise ValueError(f"head_dim must be even to be rotated in pairs, got {head_dim}")
    check_positive(theta=theta)
    dtype = torch.promote_types(x.dtype, torch.float32)
    positions = torch.arange(length, device=x.device, dtype=dtype)
    positions = positions + (start.to(dtype)[:, None, None] if isinstance(start, Tensor) else start)
    pairs = torch.arange(head_dim // 2, device=x.device, dtype=dtype)
    angles = positions[..., None] * theta ** (-2 * pairs / head_dim)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
