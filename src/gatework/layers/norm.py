"""The normalisation at the output of recurrent mixers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_divides, check_flags, check_positive, check_sizes


class GroupRMSNorm(nn.Module):
    """``y = w * x / sqrt(mean(x^2) + eps)``, the mean over each of ``num_groups`` parts of the channels.

    Computed in at least float32 and returned in the dtype of ``x``, also where the weights have another.

    Args:
        dim: Number of channels, divisible by ``num_groups``.
        num_groups: Number of parts.
        eps: Keeps the root away from zero.
        affine: Whether there are weights ``w``.

    Raises:
        TypeError: If a value has another type.
        ValueError: If a size is below 1, ``num_groups`` does not divide ``dim``, or ``eps`` is not positive.
    """

    weight: Tensor | None

    def __init__(self, dim: int, num_groups: int = 1, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        check_sizes(dim=dim)
        check_positive(eps=eps)
        check_flags(affine=affine)
        self.group_dim, self.eps = check_divides("num_groups", num_groups, "dim", dim), eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        """Normalise."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        parts = wide.unflatten(-1, (wide.shape[-1] // self.group_dim, self.group_dim))
        y = F.rms_norm(parts, (self.group_dim,), eps=self.eps).flatten(-2)
        return (y if self.weight is None else y * self.weight).to(x.dtype)
