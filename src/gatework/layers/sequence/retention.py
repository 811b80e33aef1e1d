"""Retention: linear attention whose memory fades at one fixed rate per head (RetNet, arXiv:2307.08621)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_divides, check_flags, check_positive
from gatework.layers.norm import GroupRMSNorm
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence.mixer import Mixer, State, StateTensor, expanded
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention, gated_linear_attention_step


class Retention(Mixer):
    """``S_t = gamma_h S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t / sqrt(d_k)``, normalised and gated.

    Section 2 of the paper: ``gamma_h = 1 - 2^(-5 - h)`` for head ``h = 0, 1, ...``; queries and keys are
    rotated by their positions; outputs pass an RMSNorm per head and a swish gate. The paper divides scores by
    their sums to keep numbers small, which the norm undoes; that is left out here.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides the key and value widths.
        expand_k: Key width over ``dim``; a head's share must be even.
        expand_v: Value width over ``dim``.
        norm_affine: Whether the RMSNorm has a learned scale.
        norm_eps: Its epsilon.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "g_norm_swish_gate.weight": "norm.weight",
        "g_norm.weight": "norm.weight",
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(dim)
        check_flags(norm_affine=norm_affine)
        check_positive(norm_eps=norm_eps)
        key_dim, value_dim = expanded("expand_k", expand_k, dim), expanded("expand_v", expand_v, dim)
        self.num_heads = num_heads
        self.head_key_dim = check_divides("num_heads", num_heads, "dim * expand_k", key_dim)
        self.head_value_dim = check_divides("num_heads", num_heads, "dim * expand_v", value_dim)
        if self.head_key_dim % 2:
            raise ValueError(
                f"heads must have an even number of key channels, got {self.head_key_dim} from dim={dim}, "
                f"num_heads={num_heads}, expand_k={expand_k}"
            )
        self.q_proj = nn.Linear(dim, key_dim, bias=False)
        self.k_proj = nn.Linear(dim, key_dim, bias=False)
        self.v_proj = nn.Linear(dim, value_dim, bias=False)
        self.g_proj = nn.Linear(dim, value_dim, bias=False)
        self.norm = GroupRMSNorm(self.head_value_dim, eps=norm_eps, affine=norm_affine)
        self.o_proj = nn.Linear(value_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v = self._heads(x, 0)
        y, _ = gated_linear_attention(q, k, v, self._log_decay(q))
        return self._output(y, x)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"memory", "position"}``: the matrix state, and the number of tokens seen, for the rotation."""
        memory = StateTensor((self.num_heads, self.head_key_dim, self.head_value_dim), "wide")
        return {"memory": memory, "position": StateTensor((), "integer")}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        q, k, v = self._heads(x, state["position"])
        y, memory = gated_linear_attention(q, k, v, self._log_decay(q), initial_state=state["memory"])
        return self._output(y, x), {"memory": memory, "position": state["position"] + x.shape[1]}

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        token = x.unsqueeze(1)
        q, k, v = self._heads(token, state["position"])
        q, k, v_now, decay = (tensor.squeeze(2) for tensor in (q, k, v, self._log_decay(q)))
        y, memory = gated_linear_attention_step(q, k, v_now, decay, state["memory"])
        y = self._output(y.to(v.dtype).unsqueeze(2), token)
        return y.squeeze(1), {"memory": memory, "position": state["position"] + 1}

    def state_size(self, length: int) -> int:
        """``num_heads * d_k * d_v`` elements and the position, whatever the length."""
        return self.num_heads * self.head_key_dim * self.head_value_dim + 1

    def _heads(self, x: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = (
            rotary_embedding(
                proj(x).unflatten(-1, (self.num_heads, self.head_key_dim)).transpose(1, 2), start=start
            )
            for proj in (self.q_proj, self.k_proj)
        )
        return q, k, self.v_proj(x).unflatten(-1, (self.num_heads, self.head_value_dim)).transpose(1, 2)

    def _log_decay(self, q: Tensor) -> Tensor:
        """The heads' log-decays for every token of ``q``."""
        wide = torch.promote_types(q.dtype, torch.float32)
        heads = torch.arange(self.num_heads, device=q.device, dtype=wide)
        return torch.log1p(-torch.exp2(-5 - heads))[:, None].expand(q.shape[:3])

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.norm(y.transpose(1, 2)).flatten(2)
        mixed: Tensor = self.o_proj(y * F.silu(self.g_proj(x)))
        return mixed
