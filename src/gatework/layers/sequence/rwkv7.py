"""RWKV-7 (Goose): a generalised delta rule, with decays and learning rates per channel (arXiv:2503.14456)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gatework.checks import check_flags, check_positive, check_sizes
from gatework.layers.sequence.mixer import State
from gatework.layers.sequence.rwkv_memory import MatrixMemory, normalise_heads, token_shift
from gatework.layouts import Layout
from gatework.ops.recurrence.linear_recurrence import low_rank_recurrence, low_rank_recurrence_step

#: Added to the squared length of removal keys before the root.
_L2_EPS = 1e-6


class RWKV7(MatrixMemory):
    """``S_t = (diag(exp(g_t)) - (a_t kk_t) kk_t^T) S_{t-1} + k_t v_t^T``, ``y_t = S_t^T r_t``.

    Section 4 of the paper. All inputs are mixtures of a token with the one before it. The log-decay ``g``
    lies in ``(-exp(-1/2), 0)``; ``kk`` is the normalised key under which the state is corrected, at the rate
    ``a``; outputs are normalised per head, get the present token's value weighted by ``sum r_k r_t k_t``, and
    are gated. Values are not mixed with those of a first layer, which Zoology never passes: the authors'
    parameters ``v_lora`` enter no output, are not kept here and left out when their checkpoints are loaded.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; by default as many as heads of 64 channels fit.
        head_dim: Channels of a head, in place of ``num_heads``.
        decay_rank: Rank of the decay's projection.
        rate_rank: Rank of the learning rate's projection.
        gate_rank: Rank of the output gate's projection.
        norm_affine: Whether the norm has a learned scale and shift.
        norm_eps: Its epsilon, per channel of a head.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        head_dim: int | None = None,
        decay_rank: int = 64,
        rate_rank: int = 64,
        gate_rank: int = 128,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(dim, num_heads, head_dim)
        check_sizes(decay_rank=decay_rank, rate_rank=rate_rank, gate_rank=gate_rank)
        check_flags(norm_affine=norm_affine)
        check_positive(norm_eps=norm_eps)
        # Zeros as in the authors' code: at first no token is shifted and nothing corrected.
        self.x_x = nn.Parameter(torch.zeros(6, dim))
        self.k_k = nn.Parameter(torch.zeros(dim))
        self.k_a = nn.Parameter(torch.zeros(dim))
        self.r_k = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))
        self.r_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.w_lora = _low_rank(dim, decay_rank, nn.Tanh())
        self.a_lora = _low_rank(dim, rate_rank, nn.Identity())
        self.g_lora = _low_rank(dim, gate_rank, nn.Sigmoid(), bias=False)
        self.g_norm = nn.GroupNorm(self.num_heads, dim, eps=self.head_dim * norm_eps, affine=norm_affine)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _draw_weight(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        setattr(self.o_proj, "draw_weight", _draw_weight)  # noqa: B010 (a model divides what this draws)

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        (r, k, v, *rest), gate, last = self._project(x.unsqueeze(1), state["last"])
        r_now, k_now, v_now, decay, reads, writes = (tensor.squeeze(2) for tensor in (r, k, v, *rest))
        y, memory = low_rank_recurrence_step(
            r_now, k_now, v_now, decay, reads, writes, state["memory"], scale=1.0
        )
        y = self._output(y.to(v.dtype).unsqueeze(2), r, k, v, gate)
        return y.squeeze(1), {"memory": memory, "last": last}

    def published_state_size(self, length: int) -> int:
        """``num_heads * head_dim^2``: Zoology leaves the shifted token out."""
        return self.dim * self.head_dim

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The authors' layout: longer names of low-rank projections, and a ``v_lora`` that is not used."""
        name, ours = "{of}_lora.lora.{rest}", "{of}_lora.{rest}"
        return (Layout("official", marks=(name,), renames={name: ours}, ignore=("v_lora.{rest}",)),)

    def _mix(self, x: Tensor, last: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        (r, k, v, decay, reads, writes), gate, last = self._project(x, last)
        y, memory = low_rank_recurrence(r, k, v, decay, reads, writes, scale=1.0, initial_state=memory)
        return self._output(y, r, k, v, gate), memory, last

    def _project(
        self, x: Tensor, last: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Per head ``r, k, v, g, -kk, a kk``; the gate per channel; and the latest token."""
        shifted, last = token_shift(x, last)
        change = shifted - x
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, change, mix) for mix in self.x_x)
        wide = torch.promote_types(x.dtype, torch.float32)
        decay = -math.exp(-0.5) * self.w_lora(x_w).to(wide).sigmoid()
        rate = self.a_lora(x_a).to(wide).sigmoid()
        k = self.k_proj(x_k)
        removal = self._heads(k.to(wide) * self.k_k.to(wide))
        removal = removal * torch.rsqrt(removal.square().sum(-1, keepdim=True) + _L2_EPS)
        k = k * (1 + (rate - 1) * self.k_a.to(wide)).to(k.dtype)
        r, k, v, decay, rate = (self._heads(t) for t in (self.r_proj(x_r), k, self.v_proj(x_v), decay, rate))
        return (r, k, v, decay, -removal, rate * removal), self.g_lora(x_g), last

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return heads

    def _output(self, y: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        present = (r * k * self.r_k[:, None]).sum(-1, keepdim=True) * v
        y = normalise_heads(y, self.g_norm) + present.transpose(1, 2).flatten(2)
        mixed: Tensor = self.o_proj(y.to(gate.dtype) * gate)
        return mixed


def _draw_weight(weight: Tensor) -> None:
    nn.init.xavier_uniform_(weight, gain=2**-2.5)


def _low_rank(dim: int, rank: int, activation: nn.Module, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, rank, bias=False), activation, nn.Linear(rank, dim, bias=bias))
