"""What the RWKV layers share: the token before the present one, and one square matrix per head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_divides
from gatework.layers.sequence.mixer import Mixer, State, StateTensor


def token_shift(
    x: Float[Tensor, "batch length channels"], last: Float[Tensor, "batch channels"]
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels"]]:
    """Return ``x_{t-1}``, which RWKV mixes into each ``x_t``, and the token that a next stretch starts from.

    Source: arXiv:2305.13048, section 3.1.1.

    Args:
        x: A stretch of tokens, which may be empty.
        last: The token before them; zeros before the first token of a sequence.

    Returns:
        The tokens one place later in the dtype of ``x``, and the last of them in the dtype of ``last``.
    """
    stretch = torch.cat([last.to(x.dtype).unsqueeze(1), x], 1)
    return stretch[:, :-1], stretch[:, -1].to(last.dtype)


class MatrixMemory(Mixer):
    """A mixer whose state is a matrix per head and the latest token; subclasses say in ``_mix`` how.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; by default as many as heads of 64 channels fit.
        head_dim: Channels of a head, in place of ``num_heads``.

    Raises:
        ValueError: If heads do not divide the channels, or both options are given.
    """

    def __init__(self, dim: int, num_heads: int | None, head_dim: int | None) -> None:
        super().__init__(dim)
        self.num_heads, self.head_dim = _heads_of(dim, num_heads, head_dim)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        y, _, _ = self._mix(x, x.new_zeros(x.shape[0], self.dim), None)
        return y

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"memory", "last"}``: the matrices and the latest token."""
        return {
            "memory": StateTensor((self.num_heads, self.head_dim, self.head_dim), "wide"),
            "last": StateTensor((self.dim,)),
        }

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        y, memory, last = self._mix(x, state["last"], state["memory"])
        return y, {"memory": memory, "last": last}

    def state_size(self, length: int) -> int:
        """``dim * head_dim`` elements and the latest token's ``dim``, whatever the length."""
        return self.dim * self.head_dim + self.dim

    def _mix(self, x: Tensor, last: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs, memory and latest token of a stretch that follows ``last`` and ``memory``."""
        raise NotImplementedError


def _heads_of(dim: int, num_heads: int | None, head_dim: int | None) -> tuple[int, int]:
    """Return the number of heads and their width for the one of both that is given; heads of 64 for none.

    Raises:
        ValueError: If both are given, or the one given does not divide ``dim``.
    """
    if num_heads is not None and head_dim is not None:
        raise ValueError(f"give num_heads or head_dim, not both; got {num_heads} and {head_dim}")
    if num_heads is not None:
        return num_heads, check_divides("num_heads", num_heads, "dim", dim)
    width = 64 if head_dim is None else head_dim
    return check_divides("head_dim", width, "dim", dim), width


def normalise_heads(
    y: Float[Tensor, "batch heads length head_dim"], norm: nn.GroupNorm
) -> Float[Tensor, "batch length channels"]:
    """Normalise the channels of every head of every token, in at least float32, then scale and shift them."""
    wide = torch.promote_types(y.dtype, torch.float32)
    rows: Tensor = F.layer_norm(y.transpose(1, 2).to(wide), y.shape[-1:], eps=norm.eps).flatten(2)
    if norm.affine:
        rows = rows * norm.weight.to(wide) + norm.bias.to(wide)
    return rows.to(y.dtype)
