"""Linear attention: the exponential of a softmax replaced by a product of features (arXiv:2006.16236)."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import check_divides, check_flags, check_number, check_sizes
from gatework.layers.sequence.feature_maps import FeatureMap
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention, gated_linear_attention_step


class LinearAttention(Mixer):
    """``y_i = sum_{j<=i} phi(q_i).phi(k_j) v_j / (sum_{j<=i} phi(q_i).phi(k_j) + eps)``.

    Sections 3.2 and 3.3 of the paper. Queries and keys have ``feature_dim`` channels per head, values share
    the width among the heads. The state is the two sums: ``phi(k_j) v_j^T``, and ``phi(k_j)`` as one more
    column.

    With a map that is not positive (``"identity"``; ``"all_poly"``, whose weights may be negative) the sum of
    weights may cancel, and a quotient by a sum near zero is arbitrarily large, in the authors' code as well
    as here: use ``normalize=False`` there, or a positive map.
    :class:`~gatework.layers.sequence.based.Based` is the same with Taylor features and a state about half as
    large as that of ``"taylor"`` here.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        feature_dim: Width of a head's queries and keys.
        feature_map: ``phi`` by name; see :class:`~gatework.layers.sequence.feature_maps.FeatureMap`.
        num_features: Its number of features, for maps that choose it.
        both_signs: Whether exponential maps see ``x`` and ``-x``.
        input_scale: Factor on queries and keys before the map.
        max_length: Tokens over which ``"cosformer"`` turns; later ones have its last angle. The authors take
            the length of the sequence at hand: give that length here to get their numbers.
        normalize: Whether sums are divided by the sum of weights.
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
        feature_map: str = "elu",
        num_features: int | None = None,
        both_signs: bool = True,
        input_scale: float = 1.0,
        max_length: int = 2048,
        normalize: bool = True,
        is_causal: bool = True,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        check_sizes(feature_dim=feature_dim)
        check_flags(normalize=normalize, is_causal=is_causal)
        check_number("eps", eps, at_least=0)
        self.num_heads, self.feature_dim = num_heads, feature_dim
        self.normalize, self.is_causal, self.eps = normalize, is_causal, eps
        self.feature_map = FeatureMap(
            feature_map,
            feature_dim,
            num_features=num_features,
            both_signs=both_signs,
            input_scale=input_scale,
            max_length=max_length,
        )
        self.proj_q = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.proj_k = nn.Linear(dim, num_heads * feature_dim, bias=False)
        self.proj_v = nn.Linear(dim, dim, bias=False)
        self.proj_o = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence in time linear in its length."""
        q, k, v = self._features(x, None)
        if self.is_causal:
            sums, _ = gated_linear_attention(q, k, v, scale=1.0)
        else:
            sums = q @ (k.mT @ v)
        return self._output(sums, x)

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"sums"}`` and, for a map that reads positions, ``{"position"}``: the number of tokens seen."""
        if not self.is_causal:
            raise ValueError("is_causal=False: a bidirectional mixer cannot decode token by token")
        columns = self.head_dim + self.normalize
        layout = {"sums": StateTensor((self.num_heads, self.feature_map.num_features, columns), "wide")}
        if self.feature_map.reads_positions:
            layout["position"] = StateTensor((), "integer")
        return layout

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        q, k, v = self._features(x, state)
        y, sums = gated_linear_attention(q, k, v, scale=1.0, initial_state=state["sums"])
        return self._output(y, x), self._advanced(state, sums, x.shape[1])

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token."""
        state = self._after(state, x)
        tokens = x.unsqueeze(1)
        q, k, v = (tensor.squeeze(2) for tensor in self._features(tokens, state))
        y, sums = gated_linear_attention_step(q, k, v, None, state["sums"], scale=1.0)
        return self._output(y.unsqueeze(2), tokens).squeeze(1), self._advanced(state, sums, 1)

    def state_size(self, length: int) -> int:
        """``(dim + num_heads) * features`` elements, whatever the length; one more with positions."""
        columns = self.dim + self.num_heads * self.normalize
        return columns * self.feature_map.num_features + self.feature_map.reads_positions

    def published_state_size(self, length: int) -> int:
        """``(dim + num_heads)`` times the features as Zoology counts them."""
        return (self.dim + self.num_heads) * self.feature_map.published_features

    def _features(self, x: Tensor, state: State | None) -> tuple[Tensor, Tensor, Tensor]:
        """Features of queries and keys, and values with a column of ones if sums are normalised."""
        positions = None
        if state is not None and self.feature_map.reads_positions:
            positions = state["position"][:, None] + torch.arange(x.shape[1], device=x.device)
        q, k = (
            self.feature_map(
                proj(x).unflatten(-1, (self.num_heads, self.feature_dim)).transpose(1, 2), positions
            )
            for proj in (self.proj_q, self.proj_k)
        )
        v = self.proj_v(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2).to(q.dtype)
        return q, k, F.pad(v, (0, 1), value=1.0) if self.normalize else v

    def _output(self, sums: Tensor, x: Tensor) -> Tensor:
        if self.normalize:
            sums = sums[..., :-1] / (sums[..., -1:] + self.eps)
        mixed: Tensor = self.proj_o(sums.transpose(1, 2).flatten(2).to(x.dtype))
        return mixed

    def _advanced(self, state: State, sums: Tensor, tokens: int) -> State:
        return {"sums": sums, **{name: state[name] + tokens for name in state.keys() & {"position"}}}
