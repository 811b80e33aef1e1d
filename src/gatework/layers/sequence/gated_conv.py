"""Gated convolutions: BaseConv, the smallest of them, and the long convolutions it may contain.

BaseConv is the gated convolution that arXiv:2312.04927 reduces H3, Hyena and RWKV to in order to ask what
they can recall. A long convolution has one filter tap per earlier token, learned one by one
(arXiv:2302.06646) or made by a small network of position (as in Hyena, arXiv:2302.10866).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_flags, check_int, check_sizes
from gatework.layers.sequence.filter_cache import FilterCache
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.ops.long_conv import causal_conv, causal_conv_tail


def filter_positions(max_length: int, emb_dim: int) -> Float[Tensor, "1 max_length emb_dim"]:
    """Describe the positions of a filter's taps to the network that makes them.

    Row t is ``[t/(max_length-1), cos(2 pi f t/max_length), -sin(2 pi f t/max_length)]`` with
    ``(emb_dim - 1)/2`` frequencies f from 1e-4 to one less than their number (arXiv:2302.10866, appendix).

    Raises:
        ValueError: If ``max_length`` is below 1, or ``emb_dim`` is even or below 3.
    """
    check_sizes(max_length=max_length, emb_dim=emb_dim)
    if emb_dim < 3 or emb_dim % 2 == 0:
        raise ValueError(f"emb_dim must be odd and at least 3 (time, cosines, sines), got {emb_dim}")
    bands = (emb_dim - 1) // 2
    # By arange alone: on the meta device, torch.linspace may give a tensor of the CPU.
    step = torch.arange(max_length, dtype=torch.float64)[:, None]
    band = torch.arange(bands, dtype=torch.float64)
    frequency = 1e-4 + band * ((bands - 1 - 1e-4) / max(bands - 1, 1))
    angle = 2 * math.pi / max_length * step * frequency
    table = torch.cat([step / max(max_length - 1, 1), angle.cos(), -angle.sin()], 1)
    return table.unsqueeze(0).to(torch.get_default_dtype())


class _LongFilterMixer(Mixer):
    """``y = causal_conv(x, taps) + x``; subclasses say where the taps come from.

    Inputs longer than ``max_length`` are convolved with the same ``max_length`` taps.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ()  # ends with the convolution

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__(dim)
        self.max_length = check_int("max_length", max_length, at_least=1)

    def taps(self, length: int) -> Float[Tensor, "channels taps"]:
        """Return the filter as far as ``length`` tokens need it."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        return causal_conv(x, self.taps(x.shape[1])) + x

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"history"}``: the inputs still in the filter's reach."""
        return {"history": StateTensor((None, self.dim))}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens after ``state`` (or from the start); return outputs and new state."""
        state = self._after(state, x)
        window = torch.cat([state["history"], x], 1)
        y = causal_conv_tail(window, self.taps(window.shape[1]), x.shape[1])
        expired = max(0, window.shape[1] - (self.max_length - 1))
        return y.to(x.dtype) + x, {"history": window[:, expired:].to(state["history"].dtype, copy=True)}

    def state_size(self, length: int) -> int:
        """Return the size of the inputs still in the filter's reach: at most ``max_length - 1`` tokens."""
        return min(length, self.max_length - 1) * self.dim

    def published_state_size(self, length: int) -> int:
        """All inputs, as Zoology counts."""
        return length * self.dim


class LongConvolution(_LongFilterMixer):
    """A long convolution whose taps are parameters: ``y = causal_conv(x, filter) + x``.

    Source: arXiv:2302.06646, section 2. The official code wraps taps beyond the input's length around into
    its beginning, so that early outputs see later inputs; here they are dropped.

    Args:
        dim: Number of channels.
        max_length: Number of taps per channel.

    Raises:
        ValueError: If ``dim`` or ``max_length`` is below 1.
    """

    def __init__(self, dim: int, *, max_length: int = 2048) -> None:
        super().__init__(dim, max_length)
        self.filter = nn.Parameter(torch.randn(dim, max_length))

    def taps(self, length: int) -> Float[Tensor, "channels taps"]:
        """Return the first ``length`` taps (at least one)."""
        return self.filter[:, : max(length, 1)]


class ImplicitLongConvolution(_LongFilterMixer):
    """A long convolution whose taps a network computes from their position.

    ``y = causal_conv(x, taps) + x`` with ``taps[:, t] = W2 relu(W1 p_t + b1) + b2`` and ``p_t`` the rows of
    :func:`filter_positions`. Source: arXiv:2312.04927, appendix.

    Args:
        dim: Number of channels.
        max_length: Number of taps per channel; positions are relative to it.
        emb_dim: Features per position, odd and at least 3.
        hidden_dim: Width of the network.

    Raises:
        ValueError: If a size is below 1, or ``emb_dim`` is even or below 3.
    """

    official_names: ClassVar[Mapping[str, str]] = {"pos_emb.z": "positions"}
    positions: Tensor

    def __init__(self, dim: int, *, max_length: int = 2048, emb_dim: int = 3, hidden_dim: int = 16) -> None:
        super().__init__(dim, max_length)
        check_sizes(hidden_dim=hidden_dim)
        self.register_buffer("positions", filter_positions(max_length, emb_dim))
        self.mlp = nn.Sequential(nn.Linear(emb_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        self.filter_cache = FilterCache()

    def taps(self, length: int) -> Float[Tensor, "channels taps"]:
        """Return the first ``length`` taps (at least one), in the precision of the parameters."""
        return self.filter_cache.taps(
            min(max(length, 1), self.max_length),
            self._compute_taps,
            sources=[self.positions, *self.mlp.parameters()],
            max_length=self.max_length,
        )

    def _compute_taps(self, count: int) -> Tensor:
        positions = self.positions[0, :count]
        with torch.autocast(positions.device.type, enabled=False):
            taps: Tensor = self.mlp(positions)
        return taps.T


class BaseConv(Mixer):
    """The minimal gated convolution: ``y = conv(x) * (W x + b) + x``.

    Source: arXiv:2312.04927, section 4, and the authors' code for the residual sum.

    Args:
        dim: Number of channels.
        kernel_size: Number of tokens the convolution sees; None (or -1, as the authors write it) for a long
            convolution over ``max_length`` tokens.
        implicit: Whether a network computes the long filter (:class:`ImplicitLongConvolution`) or its taps
            are parameters (:class:`LongConvolution`).
        activation: Whether both factors pass through SiLU.
        max_length: Number of taps of a long convolution.

    Raises:
        ValueError: If ``dim``, ``max_length`` or ``kernel_size`` (other than -1) is below 1.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "conv.conv.weight": "conv.weight",
        "conv.conv.bias": "conv.bias",
        "conv.pos_emb.z": "conv.positions",
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ()  # ends with the product: the projection is a factor

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int | None = 3,
        implicit: bool = True,
        activation: bool = False,
        max_length: int = 2048,
    ) -> None:
        super().__init__(dim)
        check_sizes(max_length=max_length)
        check_flags(implicit=implicit, activation=activation)
        self.activation = activation
        self.projection = nn.Linear(dim, dim)
        self.conv: ShortConvolution | LongConvolution | ImplicitLongConvolution
        if kernel_size is not None and check_int("kernel_size", kernel_size) != -1:
            self.conv = ShortConvolution(dim, kernel_size)
        elif implicit:
            self.conv = ImplicitLongConvolution(dim, max_length=max_length)
        else:
            self.conv = LongConvolution(dim, max_length=max_length)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        return self._gate(self.conv(x), x)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"conv"}``, the last inputs of a short convolution, or the ``{"history"}`` of a long one."""
        if isinstance(self.conv, ShortConvolution):
            return {"conv": StateTensor((self.conv.kernel_size - 1, self.dim))}
        return self.conv.state_layout()

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        if isinstance(self.conv, ShortConvolution):
            mixed, tail = self.conv.step(x, state["conv"])
            return self._gate(mixed, x), {"conv": tail}
        mixed, state = self.conv.step(x, state)
        return self._gate(mixed, x), state

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens after ``state`` (or from the start); return outputs and new state."""
        state = self._after(state, x)
        if isinstance(self.conv, ShortConvolution):
            mixed, tail = self.conv.prefill(x, state["conv"])
            return self._gate(mixed, x), {"conv": tail}
        mixed, state = self.conv.prefill(x, state)
        return self._gate(mixed, x), state

    def state_size(self, length: int) -> int:
        """Return the size of the inputs still in the convolution's reach."""
        if isinstance(self.conv, ShortConvolution):
            return self.conv.state_size
        return self.conv.state_size(length)

    def published_state_size(self, length: int) -> int:
        """As many inputs as a short convolution has taps, or all of them, as Zoology counts."""
        if isinstance(self.conv, ShortConvolution):
            return self.conv.kernel_size * self.dim
        return self.conv.published_state_size(length)

    def _gate(self, mixed: Tensor, x: Tensor) -> Tensor:
        gate: Tensor = self.projection(x)
        if self.activation:
            mixed, gate = F.silu(mixed), F.silu(gate)
        return mixed * gate + x
