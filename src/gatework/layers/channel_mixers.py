"""What a block does to the channels of each token."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_sizes


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
        check_sizes(dim=dim, hidden_dim=hidden_dim)
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
        check_sizes(dim=dim, hidden_dim=hidden_dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(dim, hidden_dim)
        self.fc3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "*rest channels"]) -> Float[Tensor, "*rest channels"]:
        """Mix the channels of each token."""
        y: Tensor = self.fc3(self.fc1(x) * F.gelu(self.fc2(x)))
        return y
