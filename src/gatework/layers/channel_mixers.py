"""What a block does to the channels of each token, and how it drops a whole branch while training."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """``W2 gelu(W1 x)``.

    Args:
        dim: Number of channels.
        hidden_dim: Number of channels in between.

    Attributes:
        residual_outputs: As that of :class:`~gatework.layers.sequence.mixer.Mixer`.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("fc2",)

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        """Mix the channels of each token."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class GLU(nn.Module):
    """``W3 (W1 x * gelu(W2 x))`` (arXiv:2002.05202).

    Args:
        dim: Number of channels.
        hidden_dim: Number of channels in between.

    Attributes:
        residual_outputs: As that of :class:`~gatework.layers.sequence.mixer.Mixer`.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("fc3",)

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        """Mix the channels of each token."""
        y: Tensor = self.fc3(self.fc1(x) * F.gelu(self.fc2(x)))
        return y


class DropPath(nn.Module):
    """Drop a whole branch, per sequence, with probability ``p`` while training (arXiv:1603.09382).

    Args:
        p: The probability.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Zero the branch of some sequences and scale that of the others."""
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * keep.to(x.dtype) / (1 - self.p)
