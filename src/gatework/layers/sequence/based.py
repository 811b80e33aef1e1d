"""Based: linear attention whose weights are the Taylor series of the exponential (arXiv:2402.18668)."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from gatework.checks import check_divides, check_flags, check_number, check_sizes
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.ops.recurrence.taylor_attention import (
    taylor_attention,
    taylor_attention_prefill,
    taylor_feature_count,
)


class Based(Mixer):
    """``y_i = sum_{j<=i} w_ij v_j / sum_{j<=i} w_ij``, ``w = 1 + s + s^2/2``, ``s = q_i.k_j / sqrt(f)``.

    Queries and keys are narrow (``feature_dim`` per head), values share the width among the heads. The
    state holds the features of symmetric second-order terms once, so that it has the size the paper counts.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        feature_dim: Width ``f`` of a head's queries and keys.
        is_causal: Whether a token sees only the past; a bidirectional layer has no ``step``.
        eps: Added to the sum of weights.
    """

    residual_outputs: ClassVar[tuple[str, ...]] = ("proj_o",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        feature_dim: int = 16,
        is_causal: bool = True,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        check_sizes(feature_dim=feature_dim)
        check_flags(is_causal=is_causal)
        check_number("eps", eps, at_least=0)
        self.num_heads = num_heads
        self.feature_dim = feature_dim
        self.is_causal = is_causal
        self.eps = eps
        self.proj_q = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.proj_k = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.proj_o = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v = self._project(x)
        y = taylor_attention(q, k, v, is_causal=self.is_causal, eps=self.eps)
        mixed: Tensor = self.proj_o(y.transpose(1, 2).flatten(2))
        return mixed

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"sums"}``: features of keys times values, and summed, over all tokens."""
        if not self.is_causal:
            raise ValueError("is_causal=False: a bidirectional mixer cannot decode token by token")
        features = taylor_feature_count(self.feature_dim)
        return {"sums": StateTensor((self.num_heads, features, self.head_dim + 1), "wide")}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        y, sums = taylor_attention_prefill(*self._project(x), state["sums"], eps=self.eps)
        return self.proj_o(y.transpose(1, 2).flatten(2)), {"sums": sums}

    def state_size(self, length: int) -> int:
        """``(dim + num_heads) * (1 + f + f(f+1)/2)`` elements, whatever the length."""
        return (self.dim + self.num_heads) * taylor_feature_count(self.feature_dim)

    def published_state_size(self, length: int) -> int:
        """Zoology's count is that of the symmetric features, which is what is carried here."""
        return self.state_size(length)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = (
            proj(x).unflatten(-1, (self.num_heads, self.feature_dim)).transpose(1, 2)
            for proj in (self.proj_q, self.proj_k)
        )
        return q, k, self.proj_v(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
