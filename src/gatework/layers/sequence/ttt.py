"""Test-time training as a mixer: the state is a small model per head that learns while it reads.

Source: arXiv:2407.04620, with the learned rates, the schedule and the rotation of the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_divides, check_flags, check_positive, check_sizes
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.short_conv import ShortConvolution
from gatework.layouts import Layout, change
from gatework.ops.recurrence.ttt import ttt_linear, ttt_mlp

#: Added to the variance in both norms.
_EPS = 1e-6


class _TestTimeTraining(Mixer):
    """What both inner models share; subclasses own their parameters and say how tokens train them."""

    #: Names of the inner model's parameters, here and in the state.
    model: ClassVar[tuple[str, ...]]
    official_names: ClassVar[Mapping[str, str]] = {
        "learnable_token_idx": "schedule_offset",
        "learnable_ttt_lr_weight": "rate_proj.weight",
        "learnable_ttt_lr_bias": "rate_proj.bias",
        "ttt_norm_weight": "norm_weight",
        "ttt_norm_bias": "norm_bias",
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mini_batch_size: int,
        base_rate: float,
        rope_theta: float,
        gate: bool,
        share_qk: bool,
        conv_size: int,
    ) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        if self.head_dim % 2:
            raise ValueError(
                f"dim // num_heads must be even to be rotated in pairs, got {dim} // {num_heads}"
            )
        check_sizes(mini_batch_size=mini_batch_size, conv_size=conv_size)
        check_positive(base_rate=base_rate, rope_theta=rope_theta)
        check_flags(gate=gate, share_qk=share_qk)
        self.num_heads, self.mini_batch_size = num_heads, mini_batch_size
        self.base_rate, self.rope_theta = base_rate, rope_theta
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = None if share_qk else nn.Linear(dim, dim, bias=False)
        self.conv_q = ShortConvolution(dim, conv_size) if share_qk else None
        self.conv_k = ShortConvolution(dim, conv_size) if share_qk else None
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.g_proj = nn.Linear(dim, dim, bias=False) if gate else None
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.rate_proj = nn.Linear(dim, num_heads)
        nn.init.normal_(self.rate_proj.weight, std=0.02)
        nn.init.zeros_(self.rate_proj.bias)
        self.schedule_offset = nn.Parameter(torch.zeros(mini_batch_size))
        self.norm_weight = nn.Parameter(torch.ones(num_heads, self.head_dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_heads, self.head_dim))
        self.post_norm = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v, _ = self._project(x, None)
        q, k = self._rotate(q, 0), self._rotate(k, 0)
        inner = tuple(getattr(self, name).expand(x.shape[0], -1, -1, -1) for name in self.model)
        y, *_ = self._train(q, k, v, self._rates(x), inner)
        return self._output(y, x)

    def state_layout(self) -> dict[str, StateTensor]:
        """The inner model at the start of the present mini-batch, and the tokens read since then."""
        layout = {name: StateTensor(tuple(getattr(self, name).shape), "wide") for name in self.model}
        layout["keys"] = StateTensor((self.num_heads, None, self.head_dim))
        layout["values"] = StateTensor((self.num_heads, None, self.head_dim))
        layout["rates"] = StateTensor((self.num_heads, None), "wide")
        if self.conv_q is not None:
            layout["conv"] = StateTensor((self.conv_q.kernel_size - 1, self.dim))
        return layout

    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the learned inner model, and no tokens."""
        state = super().initial_state(batch_size, device=device, dtype=dtype)
        return state | {name: state[name] + getattr(self, name).to(state[name]) for name in self.model}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens; the state keeps those of an incomplete mini-batch, to read them again."""
        state = self._after(state, x)
        q, k, v, conv = self._project(x, state.get("conv"))
        pending = _pending_tokens(state)
        q, k = self._rotate(q, pending), self._rotate(k, pending)
        keys = torch.cat([state["keys"], k.to(state["keys"].dtype)], 2)
        values = torch.cat([state["values"], v.to(state["values"].dtype)], 2)
        rates = torch.cat([state["rates"], self._rates(x).to(state["rates"].dtype)], 2)
        inner = tuple(state[name] for name in self.model)
        y, *inner_after = self._train(F.pad(q, (0, 0, pending, 0)), keys, values, rates, inner)
        read = keys.shape[2] - keys.shape[2] % self.mini_batch_size
        new_state = dict(zip(self.model, inner_after, strict=True))
        pending_after = {"keys": keys, "values": values, "rates": rates}
        new_state |= {name: tensor[:, :, read:].clone() for name, tensor in pending_after.items()}
        if conv is not None:
            new_state["conv"] = conv
        return self._output(y[:, :, pending:], x), new_state

    def state_size(self, length: int) -> int:
        """The inner model, and keys, values and rates of the tokens of an incomplete mini-batch."""
        conv = 0 if self.conv_q is None else self.conv_q.state_size
        tokens = length % self.mini_batch_size * (2 * self.dim + self.num_heads)
        return self.published_state_size(length) + tokens + conv

    def published_state_size(self, length: int) -> int:
        """The inner model alone, as Zoology counts."""
        return sum(getattr(self, name).numel() for name in self.model)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The authors' layout: within ``ttt_layer`` in their models, rates as one linear map per head."""
        names = {f"ttt_layer.{theirs}": ours for theirs, ours in self.official_names.items()}
        renames = {**self.official_names, **names, "ttt_layer.{rest}": "{rest}"}
        marks = ("learnable_token_idx|learnable_ttt_lr_{rest}|ttt_norm_{rest}|ttt_layer.{rest}",)
        return (Layout("official", marks=marks, renames=renames, convert=_join_heads_of_rates),)

    def _train(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, inner: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the outputs and the inner model after the last complete mini-batch."""
        raise NotImplementedError

    def _project(self, x: Tensor, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values per head, and the inputs that the short convolutions share."""
        q = self.q_proj(x)
        if self.k_proj is not None:
            k = self.k_proj(x)
        else:
            assert self.conv_q is not None
            assert self.conv_k is not None
            (k, _), (q, conv) = self.conv_k.prefill(q, conv), self.conv_q.prefill(q, conv)
        heads = (self.num_heads, self.head_dim)
        q, k, v = (tensor.unflatten(-1, heads).transpose(1, 2) for tensor in (q, k, self.v_proj(x)))
        return q, k, v, conv

    def _rates(self, x: Tensor) -> Tensor:
        """Learning rates ``(batch, heads, length)``, in at least float32."""
        logits = self.rate_proj(x)
        rates = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid().transpose(1, 2)
        scaled: Tensor = rates * (self.base_rate / self.head_dim)
        return scaled

    def _schedule(self) -> Tensor:
        """Factor on the summed steps at every place of a mini-batch: about one over their number."""
        offset = self.schedule_offset
        places = torch.arange(1, self.mini_batch_size + 1, device=offset.device, dtype=offset.dtype)
        return (1 / places + offset).clamp_min(0)

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotate neighbouring channels by the token's place in its mini-batch (arXiv:2104.09864)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        places = torch.arange(start, start + x.shape[2], device=x.device) % self.mini_batch_size
        pairs = torch.arange(0, self.head_dim, 2, device=x.device, dtype=dtype)
        angles = places.to(dtype)[:, None] * self.rope_theta ** (-pairs / self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        first, second = x.to(dtype).unflatten(-1, (self.head_dim // 2, 2)).unbind(-1)
        rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
        return rotated.flatten(-2).to(x.dtype)

    def _output(self, y: Tensor, x: Tensor) -> Tensor:
        y = self.post_norm(y.to(x.dtype).transpose(1, 2).flatten(2))
        if self.g_proj is not None:
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        mixed: Tensor = self.o_proj(y)
        return mixed


def _pending_tokens(state: State) -> int:
    """Number of tokens of the incomplete mini-batch that the state keeps."""
    pending = state["keys"].shape[2]
    for name in ("values", "rates"):
        if state[name].shape[2] != pending:
            raise ValueError(
                f"state[{name!r}] must hold {pending} tokens as state['keys'], got {state[name].shape[2]}"
            )
    return pending


class TTTLinear(_TestTimeTraining):
    """TTT-Linear: a linear model per head, ``f(k) = k W1 + b1``, trained to give ``v - k`` up to a norm.

    Every mini-batch takes one step of gradient descent per token, all from the model before it, with rates
    ``base_rate / head_dim * sigmoid(w_h . x_t + c_h)`` and, at place i, the factor ``max(0, 1/(i+1) + s_i)``
    on their sum; a token is answered by the model that includes its own step
    (:func:`gatework.ops.recurrence.ttt.ttt_linear`). Queries and keys are rotated by the place in the
    mini-batch; outputs pass a layer norm over all heads. Source: arXiv:2407.04620, sections 2.3 to 2.7.

    The state is the model at the start of the present mini-batch, with the tokens read since then.

    Args:
        dim: Number of channels.
        num_heads: Number of heads, each with a model of its own; divides ``dim`` into even parts.
        mini_batch_size: Tokens whose steps start from the same model.
        base_rate: Largest learning rate, before its division by the width of a head.
        rope_theta: Base of the wavelengths of the rotation.
        gate: Whether outputs are multiplied by ``gelu(W_g x)``.
        share_qk: Whether queries and keys come from one projection, through short convolutions of their own.
        conv_size: Taps of these convolutions.

    Raises:
        ValueError: If heads do not divide ``dim`` into even parts, or a number is out of range.
    """

    model = ("W1", "b1")

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        mini_batch_size: int = 16,
        base_rate: float = 1.0,
        rope_theta: float = 10000.0,
        gate: bool = False,
        share_qk: bool = False,
        conv_size: int = 4,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mini_batch_size=mini_batch_size,
            base_rate=base_rate,
            rope_theta=rope_theta,
            gate=gate,
            share_qk=share_qk,
            conv_size=conv_size,
        )
        self.W1 = nn.Parameter(0.02 * torch.randn(num_heads, self.head_dim, self.head_dim))
        self.b1 = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))

    def _train(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, inner: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        w, b = inner
        norm = (self.norm_weight, self.norm_bias)
        return ttt_linear(q, k, v, rates, self._schedule(), *norm, w, b, eps=_EPS)


class TTTMLP(_TestTimeTraining):
    """TTT-MLP: a two-layer network per head, ``f(k) = gelu(k W1 + b1) W2 + b2`` of four times its width.

    All else, and every option, is that of :class:`TTTLinear`. Source: arXiv:2407.04620, section 2.6.

    Args:
        dim: Number of channels.
        num_heads: See :class:`TTTLinear`, as all other options.
    """

    model = ("W1", "b1", "W2", "b2")

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        mini_batch_size: int = 16,
        base_rate: float = 1.0,
        rope_theta: float = 10000.0,
        gate: bool = False,
        share_qk: bool = False,
        conv_size: int = 4,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            mini_batch_size=mini_batch_size,
            base_rate=base_rate,
            rope_theta=rope_theta,
            gate=gate,
            share_qk=share_qk,
            conv_size=conv_size,
        )
        hidden = 4 * self.head_dim
        self.W1 = nn.Parameter(0.02 * torch.randn(num_heads, self.head_dim, hidden))
        self.b1 = nn.Parameter(torch.zeros(num_heads, 1, hidden))
        self.W2 = nn.Parameter(0.02 * torch.randn(num_heads, hidden, self.head_dim))
        self.b2 = nn.Parameter(torch.zeros(num_heads, 1, self.head_dim))

    def _train(
        self, q: Tensor, k: Tensor, v: Tensor, rates: Tensor, inner: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        w1, b1, w2, b2 = inner
        norm = (self.norm_weight, self.norm_bias)
        return ttt_mlp(q, k, v, rates, self._schedule(), *norm, w1, b1, w2, b2, eps=_EPS)


def _join_heads_of_rates(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return change(weights, "rate_proj.weight|rate_proj.bias", lambda tensor: tensor.squeeze(1))
