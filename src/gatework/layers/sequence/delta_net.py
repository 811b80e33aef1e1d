"""DeltaNet and Gated DeltaNet: a matrix state that replaces what it holds for a key instead of adding to it.

Sources: arXiv:2406.06484 (section 3; the rule itself arXiv:2102.11174, section 4.2) and arXiv:2412.06464
(section 3.1).
"""

from __future__ import annotations

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
    check_positive,
    check_sizes,
)
from gatework.layers.norm import GroupRMSNorm
from gatework.layers.sequence.mamba2 import initial_dt_bias
from gatework.layers.sequence.mixer import Mixer, State, StateTensor, expanded
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.layouts import Layout
from gatework.ops.feature_maps import elu_features
from gatework.ops.recurrence.linear_recurrence import delta_rule, delta_rule_step

#: Added to the squared length of queries and keys before the root.
_L2_EPS = 1e-6
_ACTIVATIONS = ("silu", "relu", "elu", "identity")


class _DeltaRuleMixer(Mixer):
    """What both layers share: projections and convolutions, the rule with or without decay, norm and gate."""

    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_key_dim: int,
        head_value_dim: int,
        *,
        conv_size: int,
        use_beta: bool,
        allow_neg_eigval: bool,
        output_gate: bool,
        qk_activation: str,
        qk_norm: str,
        norm_eps: float,
    ) -> None:
        super().__init__(dim)
        check_counts(conv_size=conv_size)
        check_flags(use_beta=use_beta, allow_neg_eigval=allow_neg_eigval, output_gate=output_gate)
        check_positive(norm_eps=norm_eps)
        self.num_heads, self.head_key_dim, self.head_value_dim = num_heads, head_key_dim, head_value_dim
        self.conv_size, self.output_gate = conv_size, output_gate
        self.use_beta, self.allow_neg_eigval = use_beta, allow_neg_eigval
        self.qk_activation, self.qk_norm = qk_activation, qk_norm
        key_dim, value_dim = num_heads * head_key_dim, num_heads * head_value_dim
        self.q_proj = nn.Linear(dim, key_dim, bias=False)
        self.k_proj = nn.Linear(dim, key_dim, bias=False)
        self.v_proj = nn.Linear(dim, value_dim, bias=False)
        if use_beta:
            self.b_proj = nn.Linear(dim, num_heads, bias=False)
        if conv_size:
            of_qk = "silu" if qk_activation == "silu" else None
            self.q_conv1d = ShortConvolution(key_dim, conv_size, bias=False, activation=of_qk)
            self.k_conv1d = ShortConvolution(key_dim, conv_size, bias=False, activation=of_qk)
            self.v_conv1d = ShortConvolution(value_dim, conv_size, bias=False, activation="silu")
        if output_gate:
            self.g_proj = nn.Linear(dim, value_dim, bias=False)
        self.o_norm = GroupRMSNorm(head_value_dim, eps=norm_eps)
        self.o_proj = nn.Linear(value_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v, _ = self._project(x, None)
        y, _ = delta_rule(q, k, v, self._beta(x), self._log_decay(x))
        return self._output(y, x)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"memory"}`` and, with short convolutions, their last inputs."""
        memory = StateTensor((self.num_heads, self.head_key_dim, self.head_value_dim), "wide")
        inputs = {name: StateTensor((self.conv_size - 1, conv.dim)) for name, conv in self._convs().items()}
        return {"memory": memory, **inputs}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        q, k, v, inputs = self._project(x, state)
        y, memory = delta_rule(q, k, v, self._beta(x), self._log_decay(x), initial_state=state["memory"])
        return self._output(y, x), {"memory": memory, **inputs}

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        token = x.unsqueeze(1)
        q, k, v, inputs = self._project(token, state)
        decay = self._log_decay(token)
        q_now, k_now, v_now, beta = (tensor.squeeze(2) for tensor in (q, k, v, self._beta(token)))
        y, memory = delta_rule_step(
            q_now, k_now, v_now, beta, None if decay is None else decay.squeeze(2), state["memory"]
        )
        y = self._output(y.to(v.dtype).unsqueeze(2), token)
        return y.squeeze(1), {"memory": memory, **inputs}

    def state_size(self, length: int) -> int:
        """``num_heads * d_k * d_v`` elements and the short convolutions' inputs, whatever the length."""
        memory = self.num_heads * self.head_key_dim * self.head_value_dim
        return memory + sum(conv.state_size for conv in self._convs().values())

    def published_state_size(self, length: int) -> int:
        """``num_heads * d_k * d_v``: Zoology leaves the short convolutions out."""
        return self.num_heads * self.head_key_dim * self.head_value_dim

    def _convs(self) -> dict[str, ShortConvolution]:
        if not self.conv_size:
            return {}
        return {"q_conv": self.q_conv1d, "k_conv": self.k_conv1d, "v_conv": self.v_conv1d}

    def _project(self, x: Tensor, state: State | None) -> tuple[Tensor, Tensor, Tensor, State]:
        """Queries, keys and values per head, and the new inputs of the convolutions if there was a state."""
        tokens = {"q_conv": self.q_proj(x), "k_conv": self.k_proj(x), "v_conv": self.v_proj(x)}
        inputs: State = {}
        for name, conv in self._convs().items():
            if state is None:
                tokens[name] = conv(tokens[name])
            else:
                tokens[name], inputs[name] = conv.prefill(tokens[name], state[name])
        q, k, v = tokens.values()
        if not self.conv_size:
            v = F.silu(v)
        q, k = (
            self._normalised(t.unflatten(-1, (self.num_heads, self.head_key_dim)).transpose(1, 2))
            for t in (q, k)
        )
        return q, k, v.unflatten(-1, (self.num_heads, self.head_value_dim)).transpose(1, 2), inputs

    def _normalised(self, x: Tensor) -> Tensor:
        """Activate and normalise queries or keys, in at least float32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.qk_activation == "relu":
            x = x.relu()
        elif self.qk_activation == "elu":
            x = elu_features(x)
        elif self.qk_activation == "silu" and not self.conv_size:  # else the convolution has applied it
            x = F.silu(x)
        if self.qk_norm == "sum":
            return x / x.sum(-1, keepdim=True)
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _L2_EPS)

    def _beta(self, x: Tensor) -> Float[Tensor, "batch heads length"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.use_beta:
            beta: Tensor = self.b_proj(x).to(wide).sigmoid().transpose(1, 2)
        else:
            beta = torch.ones(x.shape[0], self.num_heads, x.shape[1], dtype=wide, device=x.device)
        return beta * 2 if self.allow_neg_eigval else beta

    def _log_decay(self, x: Tensor) -> Float[Tensor, "batch heads length"] | None:
        return None

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.o_norm(y.transpose(1, 2)).flatten(2)
        if self.output_gate:
            y = y * F.silu(self.g_proj(x))
        mixed: Tensor = self.o_proj(y)
        return mixed


class DeltaNet(_DeltaRuleMixer):
    """``S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T``, ``o_t = S_t^T q_t / sqrt(d_k)``.

    Queries, keys and values pass short convolutions and activations, queries and keys are normalised,
    ``beta_t = sigmoid(W x_t)`` is the share of the old value that is replaced. Outputs pass an RMSNorm per
    head. The authors round queries, keys and values to bfloat16 before the recurrence; here they keep their
    precision, and the recurrence runs in at least float32.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides the key and value widths.
        expand_k: Key width over ``dim``.
        expand_v: Value width over ``dim``.
        conv_size: Taps of the short convolutions on queries, keys and values; 0 for none.
        use_beta: Whether ``beta`` is learned; otherwise it is 1.
        allow_neg_eigval: Doubles ``beta``: the state may change its sign along a key (arXiv:2411.12537).
        output_gate: Whether outputs are multiplied by ``silu(W x)`` after the norm.
        qk_activation: ``"silu"``, ``"relu"``, ``"elu"`` (plus 1) or ``"identity"``.
        qk_norm: ``"l2"``, or ``"sum"``: divided by the sum of channels, which needs a positive activation.
        norm_eps: Epsilon of the RMSNorm.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        conv_size: int = 4,
        use_beta: bool = True,
        allow_neg_eigval: bool = False,
        output_gate: bool = False,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        norm_eps: float = 1e-5,
    ) -> None:
        check_sizes(dim=dim)
        check_choice("qk_activation", qk_activation, _ACTIVATIONS)
        check_choice("qk_norm", qk_norm, ("l2", "sum"))
        super().__init__(
            dim,
            num_heads,
            check_divides("num_heads", num_heads, "dim * expand_k", expanded("expand_k", expand_k, dim)),
            check_divides("num_heads", num_heads, "dim * expand_v", expanded("expand_v", expand_v, dim)),
            conv_size=conv_size,
            use_beta=use_beta,
            allow_neg_eigval=allow_neg_eigval,
            output_gate=output_gate,
            qk_activation=qk_activation,
            qk_norm=qk_norm,
            norm_eps=norm_eps,
        )


class GatedDeltaNet(_DeltaRuleMixer):
    """:class:`DeltaNet` whose state first decays by ``exp(-exp(A_log) softplus(W x_t + dt_bias))`` per head.

    ``S' = exp(g_t) S_{t-1}``, ``S_t = S' + beta_t k_t (v_t - S'^T k_t)^T``; everything else is as in
    :class:`DeltaNet` with its defaults. The authors' parameter ``D`` enters no output: it is not kept here,
    and left out when their checkpoints are loaded.

    Args:
        dim: Number of channels.
        num_heads: Number of heads.
        head_dim: Key channels of a head; ``dim / num_heads`` by default.
        expand_v: Value channels of a head over its key channels.
        conv_size: Taps of the short convolutions on queries, keys and values; 0 for none.
        output_gate: Whether outputs are multiplied by ``silu(W x)`` after the norm.
        norm_eps: Epsilon of the RMSNorm.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        head_dim: int | None = None,
        expand_v: float = 2.0,
        conv_size: int = 4,
        output_gate: bool = True,
        norm_eps: float = 1e-5,
    ) -> None:
        check_sizes(dim=dim, num_heads=num_heads)
        if head_dim is None:
            head_dim = check_divides("num_heads", num_heads, "dim", dim)
        check_sizes(head_dim=head_dim)
        super().__init__(
            dim,
            num_heads,
            head_dim,
            expanded("expand_v", expand_v, head_dim),
            conv_size=conv_size,
            use_beta=True,
            allow_neg_eigval=False,
            output_gate=output_gate,
            qk_activation="silu",
            qk_norm="l2",
            norm_eps=norm_eps,
        )
        self.a_proj = nn.Linear(dim, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads).uniform_(1e-4, 16).log())
        self.dt_bias = nn.Parameter(initial_dt_bias(num_heads, 0.001, 0.1, 1e-4))

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The authors' layout: a ``D`` that is not used; all other names are ours."""
        return (Layout("official", marks=("D",), ignore=("D",)),)

    def _log_decay(self, x: Tensor) -> Float[Tensor, "batch heads length"]:
        wide = torch.promote_types(x.dtype, torch.float32)
        # -softplus(z), written so because torch 2.14 compiles the gradient of softplus wrong when transposed.
        negative_steps = F.logsigmoid(-(self.a_proj(x).to(wide) + self.dt_bias.to(wide)))
        return (self.A_log.to(wide).exp() * negative_steps).transpose(1, 2)
