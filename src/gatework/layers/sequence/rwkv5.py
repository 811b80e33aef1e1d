"""RWKV-5 (Eagle): matrix states that decay per channel, and a bonus for the present (arXiv:2404.05892)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_int, check_sizes
from gatework.layers.sequence.mixer import State
from gatework.layers.sequence.rwkv_memory import MatrixMemory, normalise_heads, token_shift
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention, gated_linear_attention_step

#: Outputs are divided by this before they are normalised.
_HEAD_SIZE_DIVISOR = 8


class RWKV5(MatrixMemory):
    """``y_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t``, ``S_t = diag(exp(-exp(w))) S_{t-1} + k_t v_t^T``.

    Section 4.1 of the paper. Receptance ``r``, keys, values and the gate are projections of mixtures of a
    token with the one before it; outputs are normalised per head and gated by SiLU. The authors' kernel
    rounds ``r``, ``k``, ``v``, ``w`` and ``u`` to bfloat16; here the recurrence runs in at least float32.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; by default as many as heads of 64 channels fit.
        head_dim: Channels of a head, in place of ``num_heads``.
        layer_index: Depth of the layer, counted from 0, which the initial mixtures and decays follow.
        num_layers: Number of layers that the depth is relative to; the authors leave it at 12.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("output",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        head_dim: int | None = None,
        layer_index: int = 0,
        num_layers: int = 12,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        check_sizes(num_layers=num_layers)
        check_int("layer_index", layer_index, at_least=0, at_most=num_layers - 1)
        per_head = (self.num_heads, self.head_dim)
        depth, rest = layer_index / max(num_layers - 1, 1), 1 - layer_index / num_layers
        channel = torch.arange(dim)
        share = channel / dim
        self.time_mix_k = nn.Parameter(share.pow(rest).view(1, 1, dim))
        self.time_mix_v = nn.Parameter((share.pow(rest) + 0.3 * depth).view(1, 1, dim))
        self.time_mix_r = nn.Parameter(share.pow(0.5 * rest).view(1, 1, dim))
        self.time_mix_g = nn.Parameter(share.pow(0.5 * rest).view(1, 1, dim))
        ramp = channel / max(dim - 1, 1)
        self.time_decay = nn.Parameter((-6 + 5 * ramp.pow(0.7 + 1.3 * depth)).view(per_head))
        zigzag = 0.1 * ((channel + 1) % 3 - 1)
        self.time_faaaa = nn.Parameter((depth * (1 - ramp) + zigzag).view(per_head))
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.ln_x = nn.GroupNorm(self.num_heads, dim)

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        (r, k, v, gate), last = self._project(x.unsqueeze(1), state["last"])
        r, k, v_now, decay = (tensor.squeeze(2) for tensor in (r, k, v, self._log_decay(r)))
        y, memory = gated_linear_attention_step(
            r, k, v_now, decay, state["memory"], bonus=self.time_faaaa, scale=1.0
        )
        y = self._output(y.to(v.dtype).unsqueeze(2), gate)
        return y.squeeze(1), {"memory": memory, "last": last}

    def _mix(self, x: Tensor, last: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        (r, k, v, gate), last = self._project(x, last)
        decay, bonus = self._log_decay(r), self.time_faaaa
        y, memory = gated_linear_attention(r, k, v, decay, bonus=bonus, scale=1.0, initial_state=memory)
        return self._output(y, gate), memory, last

    def _project(self, x: Tensor, last: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Receptance, keys and values per head, the gate per channel, and the latest token."""
        shifted, last = token_shift(x, last)
        change = x - shifted
        r, k, v = (
            proj(shifted + change * mix).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for proj, mix in (
                (self.receptance, self.time_mix_r),
                (self.key, self.time_mix_k),
                (self.value, self.time_mix_v),
            )
        )
        return (r, k, v, F.silu(self.gate(shifted + change * self.time_mix_g))), last

    def _log_decay(self, r: Tensor) -> Float[Tensor, "batch heads length head_dim"]:
        wide = torch.promote_types(r.dtype, torch.float32)
        return -self.time_decay.to(wide).exp()[:, None].expand(r.shape)

    def _output(self, y: Tensor, gate: Tensor) -> Tensor:
        y = normalise_heads(y / _HEAD_SIZE_DIVISOR, self.ln_x)
        mixed: Tensor = self.output(y * gate)
        return mixed
