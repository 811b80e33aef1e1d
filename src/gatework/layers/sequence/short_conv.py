"""A causal depthwise convolution over a few tokens, whole sequences at once or token by token.

A part of gated convolutions, Mamba-2 and gated linear attention rather than a mixer of its own: its state
is one tensor, the latest inputs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_choice, check_flags, check_sizes
from gatework.ops.short_conv import short_conv


class ShortConvolution(nn.Module):
    """``y[t, c] = act(bias[c] + sum_s weight[c, 0, kernel_size - 1 - s] * x[t - s, c])``.

    Parameters have the layout and the initialisation of a depthwise ``nn.Conv1d``: ``weight`` is
    ``(dim, 1, kernel_size)``, its last tap weighs the present.

    Args:
        dim: Number of channels.
        kernel_size: Number of tokens each output sees, the present one included.
        bias: Whether a constant per channel is added.
        activation: ``"silu"``, or None for a linear convolution.

    Raises:
        ValueError: If ``dim`` or ``kernel_size`` is below 1 or ``activation`` is unknown.
    """

    def __init__(
        self, dim: int, kernel_size: int, *, bias: bool = True, activation: str | None = None
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, kernel_size=kernel_size)
        check_flags(bias=bias)
        check_choice("activation", activation, (None, "silu"))
        self.dim = dim
        self.kernel_size = kernel_size
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(dim, 1, kernel_size))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as ``nn.Conv1d`` does."""
        bound = 1 / math.sqrt(self.kernel_size)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def state_size(self) -> int:
        """Number of elements, per sequence, that :meth:`step` carries: the inputs still in reach."""
        return (self.kernel_size - 1) * self.dim

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Convolve a whole sequence, as if zeros came before it."""
        return self._activate(short_conv(x, self.weight.squeeze(1), self.bias))

    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "batch history channels"]:
        """Return the ``kernel_size - 1`` zeros that precede a sequence."""
        shape = (batch_size, self.kernel_size - 1, self.dim)
        return torch.zeros(shape, device=device or self.weight.device, dtype=dtype or self.weight.dtype)

    def step(
        self, x: Float[Tensor, "batch channels"], state: Float[Tensor, "batch history channels"]
    ) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch history channels"]]:
        """Convolve the next token; return the output and the new state."""
        window = torch.cat([state, x.unsqueeze(1)], 1)
        y = (window * self.weight.squeeze(1).T).sum(1)
        if self.bias is not None:
            y = y + self.bias
        return self._activate(y.to(x.dtype)), window[:, 1:].to(state.dtype)

    def prefill(
        self,
        x: Float[Tensor, "batch length channels"],
        state: Float[Tensor, "batch history channels"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch history channels"]]:
        """Convolve a stretch of tokens after ``state`` (or from the start); return outputs and new state."""
        if state is None:
            state = self.initial_state(x.shape[0], device=x.device, dtype=x.dtype)
        history = self.kernel_size - 1
        window = torch.cat([state, x], 1)
        y = short_conv(window, self.weight.squeeze(1), self.bias)[:, history:].to(x.dtype)
        return self._activate(y), window[:, window.shape[1] - history :].to(state.dtype, copy=True)

    def extra_repr(self) -> str:
        """Options, for ``print(module)``."""
        return (
            f"{self.dim}, kernel_size={self.kernel_size}, bias={self.bias is not None}, "
            f"activation={self.activation!r}"
        )

    def _activate(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.activation == "silu" else x
