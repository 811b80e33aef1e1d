"""Hyena: a gated long convolution whose filter is a sine network of position under a decaying window.

Source: arXiv:2302.10866, section 3, for the operator of order 2 that language models use; initialisation as
in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gatework.checks import check_counts, check_flags, check_number, check_positive, check_sizes
from gatework.layers.sequence.filter_cache import FilterCache
from gatework.layers.sequence.gated_conv import filter_positions
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.layouts import Layout
from gatework.ops.long_conv import causal_conv, causal_conv_tail


class Hyena(Mixer):
    """Hyena of order 2: ``y = W_o (x2 * (causal_conv(x1 * v, h) + D * x1 * v))``.

    ``x1, x2, v`` are slices of ``short_conv(W_i x)`` and ``D`` weighs the present once more. The filter is
    ``h_t = MLP(positions_t) * (exp(-|delta| t/(max_length - 1)) + shift)``, where ``MLP`` alternates linear
    maps with ``sin(freq * .)``, all sines sharing one ``freq``. Positions are trained; the decay rates
    ``delta`` are fixed, from ``ln(decay_target)/slow_decay`` to ``ln(decay_target)/fast_decay`` over the
    channels. Source: arXiv:2302.10866, section 3.

    Args:
        dim: Number of channels.
        max_length: Longest sequence it can read; positions in the filter are relative to it.
        short_filter_order: Number of tokens the short convolution sees.
        filter_order: Width of the network that makes the filter.
        emb_dim: Features per position, odd and at least 3.
        num_inner_mlps: Square linear maps between the first and the last of that network.
        sine_frequency: Initial ``freq``.
        linear_filter: Whether the network is one linear map instead.
        modulate: Whether the decaying window applies.
        shift: What the window decays to.
        fast_decay: Share of ``max_length`` after which the fastest window reaches ``decay_target``.
        slow_decay: The same for the slowest window.
        decay_target: Value of the window that both decays refer to.
        normalized: Whether the absolute values of each tap sum to 1 over the channels.
        filter_bias: Whether ``D`` exists.

    Raises:
        ValueError: If an option is out of its range; when called, if a sequence exceeds ``max_length``.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "filter_fn.bias": "D",
        "filter_fn.pos_emb.z": "positions",
        "filter_fn.pos_emb.t": "times",
        "filter_fn.modulation.deltas": "deltas",
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)
    times: Tensor
    deltas: Tensor

    def __init__(
        self,
        dim: int,
        *,
        max_length: int = 2048,
        short_filter_order: int = 3,
        filter_order: int = 64,
        emb_dim: int = 3,
        num_inner_mlps: int = 2,
        sine_frequency: float = 1.0,
        linear_filter: bool = False,
        modulate: bool = True,
        shift: float = 0.0,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        decay_target: float = 1e-2,
        normalized: bool = False,
        filter_bias: bool = True,
    ) -> None:
        super().__init__(dim)
        check_sizes(short_filter_order=short_filter_order, filter_order=filter_order)
        check_counts(num_inner_mlps=num_inner_mlps)
        check_positive(
            sine_frequency=sine_frequency,
            fast_decay=fast_decay,
            slow_decay=slow_decay,
            decay_target=decay_target,
        )
        check_number("shift", shift)
        check_flags(
            linear_filter=linear_filter, modulate=modulate, normalized=normalized, filter_bias=filter_bias
        )
        self.max_length = max_length
        self.modulate = modulate
        self.shift = shift
        self.normalized = normalized

        self.in_proj = nn.Linear(dim, 3 * dim)
        self.short_filter = ShortConvolution(3 * dim, short_filter_order)
        self.out_proj = nn.Linear(dim, dim)
        self.D = nn.Parameter(torch.randn(dim)) if filter_bias else None

        self.positions = nn.Parameter(filter_positions(max_length, emb_dim))
        self.register_buffer("times", self.positions.detach()[:, :, :1].clone())
        self.register_buffer("deltas", _decay_rates(dim, fast_decay, slow_decay, decay_target))
        widths = [emb_dim] if linear_filter else [emb_dim, *[filter_order] * (num_inner_mlps + 1)]
        hidden = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths)]
        self.filter_layers = nn.ModuleList([*hidden, nn.Linear(widths[-1], dim, bias=False)])
        self.freq = (
            None if linear_filter else nn.Parameter(torch.full((1, filter_order), float(sine_frequency)))
        )
        self.filter_cache = FilterCache()

    def taps(self, length: int) -> Float[Tensor, "channels taps"]:
        """Return the first ``length`` taps (at least one), in the precision of the parameters."""
        return self.filter_cache.taps(
            min(max(length, 1), self.max_length),
            self._compute_taps,
            sources=[
                self.positions,
                self.times,
                self.deltas,
                *self.filter_layers.parameters(),
                *([] if self.freq is None else [self.freq]),
            ],
            max_length=self.max_length,
        )

    def _compute_taps(self, count: int) -> Tensor:
        positions, times = self.positions[0, :count], self.times[0, :count]
        with torch.autocast(positions.device.type, enabled=False):
            h: Tensor = self.filter_layers[0](positions)
            if self.freq is not None:
                for layer in self.filter_layers[1:]:
                    h = layer(torch.sin(self.freq * h))
        if self.modulate:
            h = h * (torch.exp(-times * self.deltas[0].abs()) + self.shift)
        if self.normalized:
            h = h / h.abs().sum(1, keepdim=True)
        return h.T

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        self._check_length(x.shape[1])
        x1, x2, v = self.short_filter(self.in_proj(x)).chunk(3, -1)
        v = v * x1
        return self._project(causal_conv(v, self.taps(v.shape[1])), v, x2)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"short", "history"}``: last inputs of the short convolution, all inputs of the long one."""
        return {
            "short": StateTensor((self.short_filter.kernel_size - 1, self.short_filter.dim)),
            "history": StateTensor((None, self.dim)),
        }

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens after ``state`` (or from the start); return outputs and new state."""
        state = self._after(state, x)
        self._check_length(state["history"].shape[1] + x.shape[1])
        mixed, short = self.short_filter.prefill(self.in_proj(x), state["short"])
        x1, x2, v = mixed.chunk(3, -1)
        v = v * x1
        window = torch.cat([state["history"], v], 1)
        y = causal_conv_tail(window, self.taps(window.shape[1]), v.shape[1]).to(v.dtype)
        return self._project(y, v, x2), {"short": short, "history": window.to(state["history"].dtype)}

    def state_size(self, length: int) -> int:
        """Return the size of the short convolution's history and of all gated inputs so far.

        Raises:
            ValueError: If ``length`` exceeds ``max_length``.
        """
        self._check_length(length)
        return self.short_filter.state_size + length * self.dim

    def published_state_size(self, length: int) -> int:
        """All inputs of the long convolution, as Zoology counts."""
        return length * self.dim

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The authors' layout: every second entry of their filter network is the one shared sine."""
        renames = {**self.official_names, "filter_fn.implicit_filter.{i}.freq": "freq"}
        for index in range(len(self.filter_layers)):
            theirs = f"filter_fn.implicit_filter.{2 * index}.{{rest}}"
            renames[theirs] = f"filter_layers.{index}.{{rest}}"
        unused = ("filter_fn.bias",) if self.D is None else ()  # theirs exists, and is multiplied by zero
        return (Layout("official", marks=("filter_fn.{rest}",), renames=renames, ignore=unused),)

    def _project(self, y: Tensor, v: Tensor, x2: Tensor) -> Tensor:
        if self.D is not None:
            y = y + self.D * v
        projected: Tensor = self.out_proj((y * x2).to(x2.dtype))
        return projected

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise ValueError(f"Hyena reads at most max_length={self.max_length} tokens, got {length}")


def _decay_rates(dim: int, fast: float, slow: float, target: float) -> Float[Tensor, "1 1 dim"]:
    return torch.linspace(math.log(target) / slow, math.log(target) / fast, dim)[None, None]
