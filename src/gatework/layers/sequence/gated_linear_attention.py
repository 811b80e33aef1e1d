"""Gated linear attention: a matrix state that forgets per key channel, as it learns to (arXiv:2312.06635)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import (
    check_choice,
    check_counts,
    check_divides,
    check_flags,
    check_number,
    check_positive,
    check_sizes,
)
from gatework.layers.norm import GroupRMSNorm
from gatework.layers.sequence.mixer import Mixer, State, StateTensor, expanded
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention, gated_linear_attention_step


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


#: Activations by the names the authors' library gives them.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu_tanh,
    "logsigmoid": F.logsigmoid,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
}


class GatedLinearAttention(Mixer):
    """``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t / sqrt(d_k)``, normalised and gated.

    The log-decay ``g = logsigmoid(W2 W1 x) / gate_logit_normalizer`` is computed per key channel through a
    low-rank projection; outputs pass an RMSNorm per head and the output gate. Sections 4.2-4.4 of the paper.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides the key and value widths.
        num_kv_heads: Heads of keys and values, dividing ``num_heads``; as many as heads by default.
        expand_k: Key width over ``dim``.
        expand_v: Value width over ``dim``.
        gate_rank: Rank of the decay's projection.
        gate_logit_normalizer: Divides the log-decay: larger forgets more slowly.
        min_log_decay: Lower bound of the log-decay, none by default.
        conv_size: Taps of a short convolution on queries, keys and values; 0 for none.
        output_gate: Activation of the output gate (``"swish"``, ``"sigmoid"``, …) or ``None`` for no gate.
        feature_map: Activation of queries and keys, none by default.
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
        num_kv_heads: int | None = None,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_rank: int = 16,
        gate_logit_normalizer: float = 16.0,
        min_log_decay: float | None = None,
        conv_size: int = 0,
        output_gate: str | None = "swish",
        feature_map: str | None = None,
        norm_affine: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__(dim)
        check_choice("output_gate", output_gate, (None, *ACTIVATIONS))
        check_choice("feature_map", feature_map, (None, *ACTIVATIONS))
        check_flags(norm_affine=norm_affine)
        check_sizes(gate_rank=gate_rank)
        check_counts(conv_size=conv_size)
        check_positive(gate_logit_normalizer=gate_logit_normalizer, norm_eps=norm_eps)
        if min_log_decay is not None:
            check_number("min_log_decay", min_log_decay, at_most=0)
        key_dim, value_dim = expanded("expand_k", expand_k, dim), expanded("expand_v", expand_v, dim)
        self.head_key_dim = check_divides("num_heads", num_heads, "dim * expand_k", key_dim)
        self.head_value_dim = check_divides("num_heads", num_heads, "dim * expand_v", value_dim)
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.groups = check_divides("num_kv_heads", self.num_kv_heads, "num_heads", num_heads)
        self.gate_logit_normalizer = gate_logit_normalizer
        self.min_log_decay = min_log_decay
        self.output_gate = output_gate
        self.feature_map = feature_map
        kv_key_dim, kv_value_dim = key_dim // self.groups, value_dim // self.groups
        self.q_proj = nn.Linear(dim, key_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_key_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_value_dim, bias=False)
        self.gk_proj = nn.Sequential(nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, kv_key_dim))
        if output_gate is not None:
            self.g_proj = nn.Linear(dim, value_dim, bias=False)
        self.conv_size = conv_size
        if conv_size:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (
                ShortConvolution(width, conv_size, bias=False, activation="silu")
                for width in (key_dim, kv_key_dim, kv_value_dim)
            )
        self.norm = GroupRMSNorm(self.head_value_dim, eps=norm_eps, affine=norm_affine)
        self.o_proj = nn.Linear(value_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.conv_size:
            q, k, v = self.q_conv1d(q), self.k_conv1d(k), self.v_conv1d(v)
        y, _ = gated_linear_attention(*self._heads(q, k, v), self._log_decay(x))
        return self._output(y, x)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"memory"}`` and, with short convolutions, their last inputs."""
        memory = StateTensor((self.num_heads, self.head_key_dim, self.head_value_dim), "wide")
        inputs = {name: StateTensor((self.conv_size - 1, conv.dim)) for name, conv in self._convs().items()}
        return {"memory": memory, **inputs}

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        projected, new_state = {"q": self.q_proj(x), "k": self.k_proj(x), "v": self.v_proj(x)}, {}
        for name, conv in self._convs().items():
            projected[name[0]], new_state[name] = conv.step(projected[name[0]], state[name])
        heads = self._heads(*(tensor.unsqueeze(1) for tensor in projected.values()))
        q, k, v, decay = (tensor.squeeze(2) for tensor in (*heads, self._log_decay(x.unsqueeze(1))))
        y, memory = gated_linear_attention_step(q, k, v, decay, state["memory"])
        y = self._output(y.to(x.dtype).unsqueeze(2), x.unsqueeze(1))
        return y.squeeze(1), {"memory": memory, **new_state}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        projected, new_state = {"q": self.q_proj(x), "k": self.k_proj(x), "v": self.v_proj(x)}, {}
        for name, conv in self._convs().items():
            projected[name[0]], new_state[name] = conv.prefill(projected[name[0]], state[name])
        y, memory = gated_linear_attention(
            *self._heads(*projected.values()), self._log_decay(x), initial_state=state["memory"]
        )
        return self._output(y, x), {"memory": memory, **new_state}

    def state_size(self, length: int) -> int:
        """``num_heads * d_k * d_v`` elements and the short convolutions' inputs, whatever the length."""
        memory = self.num_heads * self.head_key_dim * self.head_value_dim
        return memory + sum(conv.state_size for conv in self._convs().values())

    def published_state_size(self, length: int) -> int:
        """Zoology's count: ``num_heads * d_k * d_v``, and all taps of the short convolutions."""
        memory = self.num_heads * self.head_key_dim * self.head_value_dim
        return memory + sum(conv.kernel_size * conv.dim for conv in self._convs().values())

    def _convs(self) -> dict[str, ShortConvolution]:
        if not self.conv_size:
            return {}
        return {"q_conv": self.q_conv1d, "k_conv": self.k_conv1d, "v_conv": self.v_conv1d}

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.feature_map is not None:
            q, k = ACTIVATIONS[self.feature_map](q), ACTIVATIONS[self.feature_map](k)
        q = q.unflatten(-1, (self.num_heads, self.head_key_dim)).transpose(1, 2)
        return q, self._share(k, self.head_key_dim), self._share(v, self.head_value_dim)

    def _share(self, x: Tensor, head_dim: int) -> Tensor:
        """Split keys, values or decays into heads, each repeated for the query heads that share it."""
        heads: Tensor = x.unflatten(-1, (self.num_kv_heads, head_dim)).transpose(1, 2)
        return heads if self.groups == 1 else heads.repeat_interleave(self.groups, 1)

    def _log_decay(self, x: Tensor) -> Tensor:
        decay = F.logsigmoid(self.gk_proj(x)) / self.gate_logit_normalizer
        if self.min_log_decay is not None:
            decay = decay.clamp_min(self.min_log_decay)
        return self._share(decay, self.head_key_dim)

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.norm(y.transpose(1, 2)).flatten(2)
        if self.output_gate is not None:
            y = y * ACTIVATIONS[self.output_gate](self.g_proj(x))
        mixed: Tensor = self.o_proj(y)
        return mixed
