"""Mamba-2: a state-space model whose decay is one input-dependent number per head (arXiv:2405.21060)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import (
    check_divides,
    check_flags,
    check_int,
    check_not_below,
    check_number,
    check_positive,
    check_sizes,
)
from gatework.layers.norm import GroupRMSNorm
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention, gated_linear_attention_step


class Mamba2(Mixer):
    """``S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T``, ``y_t = S_t^T C_t + D x_t``, gated by ``silu(z)``.

    ``x``, ``B`` and ``C`` pass a short convolution with SiLU; ``dt = softplus(W x + dt_bias)`` and
    ``A = -exp(A_log)`` per head. This is linear attention with queries ``C``, keys ``B`` and values
    ``dt x`` (state-space duality, section 5), and computed as such.

    Args:
        dim: Number of channels.
        state_dim: Width of ``B`` and ``C``.
        head_dim: Channels per head; divides the width of the state-space part.
        expand: Inner width over ``dim``.
        ssm_dim: Inner channels that pass the state-space model, all by default; the rest is a gated MLP.
        num_groups: Groups of heads that share ``B`` and ``C``.
        conv_size: Taps of the short convolution.
        conv_bias: Whether it has a bias.
        bias: Whether input and output projections have one.
        skip_per_channel: Whether ``D`` has one weight per channel instead of one per head.
        norm: Whether outputs pass an RMSNorm (per group).
        norm_before_gate: Normalise before gating instead of after it.
        dt_min: Smallest initial step.
        dt_max: Largest initial step.
        dt_floor: Lower bound of the initial steps.
        dt_limit: Bounds of the step in use.
        a_init_range: Range that ``-A`` is drawn from.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 128,
        head_dim: int = 64,
        expand: int = 2,
        ssm_dim: int | None = None,
        num_groups: int = 1,
        conv_size: int = 4,
        conv_bias: bool = True,
        bias: bool = False,
        skip_per_channel: bool = False,
        norm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        a_init_range: tuple[float, float] = (1.0, 16.0),
    ) -> None:
        super().__init__(dim)
        check_sizes(state_dim=state_dim, expand=expand, conv_size=conv_size)
        check_positive(dt_min=dt_min)
        check_not_below("dt_max", dt_max, "dt_min", dt_min)
        check_number("dt_floor", dt_floor, at_least=0)
        check_flags(
            conv_bias=conv_bias,
            bias=bias,
            skip_per_channel=skip_per_channel,
            norm=norm,
            norm_before_gate=norm_before_gate,
        )
        dt_limit = _range("dt_limit", dt_limit, finite=False)
        a_init_range = _range("a_init_range", a_init_range, above=0)
        inner = expand * dim
        self.ssm_dim = inner if ssm_dim is None else check_int("ssm_dim", ssm_dim, at_least=1, at_most=inner)
        self.mlp_dim = inner - self.ssm_dim
        self.num_heads = check_divides("head_dim", head_dim, "ssm_dim", self.ssm_dim)
        self.heads_per_group = check_divides("num_groups", num_groups, "num_heads", self.num_heads)
        self.state_dim, self.head_dim, self.num_groups = state_dim, head_dim, num_groups
        self.norm_before_gate, self.dt_limit = norm_before_gate, dt_limit
        conv_dim = self.ssm_dim + 2 * num_groups * state_dim
        # Rows of in_proj: MLP gate, MLP value, z, (x, B, C), dt.
        self._split = (self.mlp_dim, self.mlp_dim, self.ssm_dim, conv_dim, self.num_heads)
        self.in_proj = nn.Linear(dim, sum(self._split), bias=bias)
        self.conv1d = ShortConvolution(conv_dim, conv_size, bias=conv_bias, activation="silu")
        self.dt_bias = nn.Parameter(initial_dt_bias(self.num_heads, dt_min, dt_max, dt_floor))
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(*a_init_range).log())
        self.D = nn.Parameter(torch.ones(self.ssm_dim if skip_per_channel else self.num_heads))
        self.norm = GroupRMSNorm(self.ssm_dim, num_groups) if norm else None
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        gate, value, z, xbc, dt = self.in_proj(x).split(self._split, -1)
        v, b, c, dt = self._heads(self.conv1d(xbc), dt)
        y, _ = gated_linear_attention(c, b, v * dt[..., None], dt * self._a(dt.dtype), scale=1.0)
        return self._output(y, v, z, gate, value)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"memory", "conv"}``: the matrix state, and the last inputs of the convolution."""
        return {
            "memory": StateTensor((self.num_heads, self.state_dim, self.head_dim), "wide"),
            "conv": StateTensor((self.conv1d.kernel_size - 1, self.conv1d.dim)),
        }

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        gate, value, z, xbc, dt = self.in_proj(x.unsqueeze(1)).split(self._split, -1)
        conv_out, conv = self.conv1d.step(xbc.squeeze(1), state["conv"])
        v, b, c, dt = self._heads(conv_out.unsqueeze(1), dt)
        tokens = (c, b, v * dt[..., None], dt * self._a(dt.dtype))
        query, key, value_now, decay = (tensor.squeeze(2) for tensor in tokens)
        y, memory = gated_linear_attention_step(query, key, value_now, decay, state["memory"], scale=1.0)
        y = self._output(y.to(v.dtype).unsqueeze(2), v, z, gate, value)
        return y.squeeze(1), {"memory": memory, "conv": conv}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        gate, value, z, xbc, dt = self.in_proj(x).split(self._split, -1)
        conv_out, conv = self.conv1d.prefill(xbc, state["conv"])
        v, b, c, dt = self._heads(conv_out, dt)
        y, memory = gated_linear_attention(
            c, b, v * dt[..., None], dt * self._a(dt.dtype), scale=1.0, initial_state=state["memory"]
        )
        return self._output(y, v, z, gate, value), {"memory": memory, "conv": conv}

    def state_size(self, length: int) -> int:
        """``ssm_dim * state_dim`` elements and the short convolution's inputs, whatever the length."""
        return self.ssm_dim * self.state_dim + self.conv1d.state_size

    def published_state_size(self, length: int) -> int:
        """Zoology's count, ``2 * dim * state_dim``, whatever ``expand`` and the short convolution."""
        return 2 * self.dim * self.state_dim

    def _a(self, dtype: torch.dtype) -> Tensor:
        return -self.A_log.to(dtype).exp()[:, None]

    def _heads(self, xbc: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, keys, queries per head (batch, heads, length, width), and steps (batch, heads, length)."""
        width = self.num_groups * self.state_dim
        x, b, c = xbc.split((self.ssm_dim, width, width), -1)
        v = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        b, c = (
            t.unflatten(-1, (self.num_groups, self.state_dim))
            .transpose(1, 2)
            .repeat_interleave(self.heads_per_group, 1)
            for t in (b, c)
        )
        # Steps in at least float32: they enter an exponential summed over the sequence.
        wide = torch.promote_types(dt.dtype, torch.float32)
        steps = F.softplus(dt.to(wide) + self.dt_bias.to(wide)).clamp(*self.dt_limit)
        return v, b, c, steps.transpose(1, 2)

    def _output(self, y: Tensor, v: Tensor, z: Tensor, gate: Tensor, value: Tensor) -> Tensor:
        skip = self.D.view(-1, self.head_dim) if self.D.numel() == self.ssm_dim else self.D[:, None]
        y = (y + v * skip[:, None]).transpose(1, 2).flatten(2).to(z.dtype)
        if self.norm is None:
            y = y * F.silu(z)
        elif self.norm_before_gate:
            y = self.norm(y) * F.silu(z)
        else:
            y = self.norm(y * F.silu(z))
        if self.mlp_dim:
            y = torch.cat([F.silu(gate) * value, y], -1)
        mixed: Tensor = self.out_proj(y)
        return mixed


def _range(
    name: str, bounds: Sequence[float], *, above: float | None = None, finite: bool = True
) -> tuple[float, float]:
    """The least and the greatest of some numbers, checked."""
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise TypeError(f"{name} must be two numbers, the least and the greatest, got {bounds!r:.200}")
    least = check_number(f"{name}[0]", bounds[0], above=above, at_least=0 if above is None else None)
    return least, check_number(f"{name}[1]", bounds[1], at_least=least, finite=finite)


def initial_dt_bias(num_heads: int, dt_min: float, dt_max: float, dt_floor: float) -> Tensor:
    """Draw biases whose softplus is log-uniform between ``dt_min`` and ``dt_max``, at least ``dt_floor``."""
    span = math.log(dt_max) - math.log(dt_min)
    dt = torch.exp(torch.rand(num_heads) * span + math.log(dt_min)).clamp_min(dt_floor)
    return dt + torch.log(-torch.expm1(-dt))
