"""Mamba: a diagonal state-space model that each token steps in its own way (arXiv:2312.00752)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import (
    check_choice,
    check_flags,
    check_not_below,
    check_number,
    check_positive,
    check_sizes,
)
from gatework.layers.sequence.mamba2 import initial_dt_bias
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.ops.recurrence.selective_scan import selective_scan, selective_scan_step


class Mamba(Mixer):
    """``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t``, ``y_t = C_t . h_t + D x_t``, gated by ``silu(z)``.

    ``x`` and ``z`` are projections of the input, ``x`` through a short convolution with SiLU. For every token
    ``B``, ``C`` and a low-rank ``r`` are projections of ``x``, and ``dt = softplus(W r + b)`` per channel;
    ``A = -exp(A_log)`` per channel and state. Section 3 and algorithm 2 of the paper.

    Args:
        dim: Number of channels.
        state_dim: States per inner channel.
        conv_size: Taps of the short convolution.
        expand: Inner channels over ``dim``.
        dt_rank: Rank of the projection to the steps, a sixteenth of ``dim`` (rounded up) by default.
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_init: Whether the steps' projection starts ``"random"`` or ``"constant"``.
        dt_scale: Scale of it.
        dt_floor: Lower bound of the initial steps.
        conv_bias: Whether the short convolution has a bias.
        bias: Whether input and output projections have one.

    Raises:
        ValueError: If a size is below 1, ``dt_init`` is unknown, or the initial steps are not positive and
            in order.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 16,
        conv_size: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(dim)
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        check_sizes(state_dim=state_dim, conv_size=conv_size, expand=expand, dt_rank=rank)
        check_choice("dt_init", dt_init, ("random", "constant"))
        check_positive(dt_min=dt_min, dt_scale=dt_scale)
        check_not_below("dt_max", dt_max, "dt_min", dt_min)
        check_number("dt_floor", dt_floor, at_least=0)
        check_flags(conv_bias=conv_bias, bias=bias)
        self.inner_dim, self.state_dim = expand * dim, state_dim
        self._split = (rank, state_dim, state_dim)  # rows of x_proj: steps, B, C
        self.in_proj = nn.Linear(dim, 2 * self.inner_dim, bias=bias)
        self.conv1d = ShortConvolution(self.inner_dim, conv_size, bias=conv_bias, activation="silu")
        self.x_proj = nn.Linear(self.inner_dim, sum(self._split), bias=False)
        self.dt_proj = _step_projection(rank, self.inner_dim, dt_init, dt_scale, dt_min, dt_max, dt_floor)
        rates = torch.arange(1, state_dim + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(rates.log().repeat(self.inner_dim, 1))
        self.D = nn.Parameter(torch.ones(self.inner_dim))
        self.out_proj = nn.Linear(self.inner_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        x, z = self.in_proj(x).chunk(2, -1)
        x = self.conv1d(x)
        y, _ = selective_scan(x, *self._system(x))
        return self._output(y, z)

    def state_layout(self) -> dict[str, StateTensor]:
        """Return ``{"memory", "conv"}``: the states, and the last inputs of the short convolution."""
        return {
            "memory": StateTensor((self.inner_dim, self.state_dim), "wide"),
            "conv": StateTensor((self.conv1d.kernel_size - 1, self.inner_dim)),
        }

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        x, z = self.in_proj(x).chunk(2, -1)
        x, conv = self.conv1d.prefill(x, state["conv"])
        y, memory = selective_scan(x, *self._system(x), initial_state=state["memory"])
        return self._output(y, z), {"memory": memory, "conv": conv}

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        x, z = self.in_proj(x).chunk(2, -1)
        x, conv = self.conv1d.step(x, state["conv"])
        y, memory = selective_scan_step(x, *self._system(x), state["memory"])
        return self._output(y, z), {"memory": memory, "conv": conv}

    def state_size(self, length: int) -> int:
        """``inner_dim * state_dim`` elements and the short convolution's inputs, whatever the length."""
        return self.inner_dim * self.state_dim + self.conv1d.state_size

    def published_state_size(self, length: int) -> int:
        """Zoology counts ``2 * dim * state_dim``: no convolution, and an expansion of 2 whatever it is."""
        return 2 * self.dim * self.state_dim

    def _system(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Steps, ``A``, ``B``, ``C`` and ``D`` for tokens with the inner channels ``x``."""
        low_rank, b, c = self.x_proj(x).split(self._split, -1)
        # Steps in at least float32: they enter an exponential summed over the sequence.
        wide = torch.promote_types(x.dtype, torch.float32)
        steps = F.linear(low_rank, self.dt_proj.weight).to(wide) + self.dt_proj.bias.to(wide)
        return F.softplus(steps), -self.A_log.to(wide).exp(), b, c, self.D

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        mixed: Tensor = self.out_proj(y.to(z.dtype) * F.silu(z))
        return mixed


def _step_projection(
    rank: int, inner_dim: int, init: str, scale: float, dt_min: float, dt_max: float, dt_floor: float
) -> nn.Linear:
    """Projection whose bias makes steps that are log-uniform between ``dt_min`` and ``dt_max``."""
    projection = nn.Linear(rank, inner_dim)
    bound = scale / math.sqrt(rank)
    with torch.no_grad():
        if init == "constant":
            projection.weight.fill_(bound)
        else:
            projection.weight.uniform_(-bound, bound)
        projection.bias.copy_(initial_dt_bias(inner_dim, dt_min, dt_max, dt_floor))
    setattr(projection, "keeps_bias", True)  # noqa: B010 (models set the biases of other projections to 0)
    return projection
