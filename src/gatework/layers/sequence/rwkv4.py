"""Time mixing of RWKV-4: exponentially weighted means of values, a decay per channel (arXiv:2305.13048)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gatework.checks import check_int
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.rwkv_memory import token_shift
from gatework.ops.recurrence.wkv import wkv, wkv_step


class RWKV4(Mixer):
    """``y_t = W_o (sigmoid(r_t) * wkv_t)``, where ``wkv_t`` is a weighted mean of the values so far.

    Values weigh ``exp((t - 1 - i) w + k_i)`` with ``w = -exp(time_decay)``, and the present one
    ``exp(time_first + k_t)``. Keys, values and receptance are projections of the input mixed channel by
    channel with the token before it. Sections 3.1.1 and 3.1.2 of the paper, appendix E for initial values.

    Args:
        dim: Number of channels.
        layer_index: Which layer of the model this is, from 0: it enters the initial values.
        num_layers: How many layers the model has, likewise.

    Raises:
        ValueError: If ``num_layers`` is below 2, or ``layer_index`` is not one of the layers.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("output",)

    def __init__(self, dim: int, *, layer_index: int = 0, num_layers: int = 12) -> None:
        super().__init__(dim)
        check_int("num_layers", num_layers, at_least=2)
        check_int("layer_index", layer_index, at_least=0, at_most=num_layers - 1)
        depth, rest = layer_index / (num_layers - 1), 1 - layer_index / num_layers
        channel = torch.arange(dim)
        place = channel / max(dim - 1, 1)
        self.time_decay = nn.Parameter(8 * place ** (0.7 + 1.3 * depth) - 5)
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        share = (channel / dim).view(1, 1, dim)
        self.time_mix_k = nn.Parameter(share**rest)
        self.time_mix_v = nn.Parameter(share**rest + 0.3 * depth)
        self.time_mix_r = nn.Parameter(share ** (0.5 * rest))
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        y, _, _ = self._mix(x, x.new_zeros(x.shape[0], self.dim), None)
        return y

    def state_layout(self) -> dict[str, StateTensor]:
        """Return ``{"mean", "log_weight", "last"}``: of the values read so far, and the last input."""
        shape = (self.dim,)
        return {
            "mean": StateTensor(shape, "wide"),
            "log_weight": StateTensor(shape, "wide"),
            "last": StateTensor(shape),
        }

    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the state before the first token: nothing has any weight."""
        state = super().initial_state(batch_size, device=device, dtype=dtype)
        state["log_weight"].fill_(-torch.inf)
        return state

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        y, (mean, log_weight), last = self._mix(x, state["last"], (state["mean"], state["log_weight"]))
        return y, {"mean": mean, "log_weight": log_weight, "last": last}

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        k, v, r = (
            tensor.squeeze(1) for tensor in self._projections(x.unsqueeze(1), state["last"].unsqueeze(1))
        )
        weighted = state["mean"], state["log_weight"]
        y, (mean, log_weight) = wkv_step(k, v, self._decay(), self.time_first, weighted)
        last = x.to(state["last"].dtype)
        return self._output(y, r), {"mean": mean, "log_weight": log_weight, "last": last}

    def state_size(self, length: int) -> int:
        """Three elements per channel, whatever the length."""
        return 3 * self.dim

    def _mix(
        self, x: Tensor, last: Tensor, weighted: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Read a stretch of tokens after the token ``last``."""
        before, last = token_shift(x, last)
        k, v, r = self._projections(x, before)
        y, weighted = wkv(k, v, self._decay(), self.time_first, initial_state=weighted)
        return self._output(y, r), weighted, last

    def _decay(self) -> Tensor:
        wide = torch.promote_types(self.time_decay.dtype, torch.float32)
        return -self.time_decay.to(wide).exp()

    def _projections(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and receptance of tokens, given the token before each."""
        change = x - before.to(x.dtype)
        k, v, r = (before + change * mix for mix in (self.time_mix_k, self.time_mix_v, self.time_mix_r))
        return self.key(k), self.value(v), self.receptance(r)

    def _output(self, y: Tensor, r: Tensor) -> Tensor:
        mixed: Tensor = self.output(torch.sigmoid(r) * y.to(r.dtype))
        return mixed
