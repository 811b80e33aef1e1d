"""Softmax attention as sequence mixers: over the whole past, or over a sliding window of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gatework.checks import check_divides, check_flags, check_int, check_positive, check_probability
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.packed_documents import PackedDocuments
from gatework.masks import Causal, Mask, SlidingWindow
from gatework.ops.attention import attention, kernels

#: Mean length from which on a mask of all documents is faster than groups of them, forward and backward. Its
#: tiles take 0.5 to 0.9 of the time of the groups at any length, but their planning takes a millisecond or so
#: for each document of a batch, which two layers gain back from about here on.
_LEAST_MEAN_LENGTH = 256


class MultiHeadAttention(Mixer):
    """Causal multi-head attention: ``y = W_o concat_h(softmax(q_h k_h^T / sqrt(head_dim)) v_h)``.

    A token attends to itself and to all tokens before it (arXiv:1706.03762, section 3.2.2). The state
    holds the keys, before any rotation, and the values of all tokens read so far.

    Args:
        dim: Number of channels.
        num_heads: Number of query heads; divides ``dim``.
        num_kv_heads: Number of key and value heads, each shared by as many query heads
            (arXiv:2305.13245); divides ``num_heads``, and is equal to it by default.
        qkv_bias: Whether queries, keys and values have a bias.
        out_bias: Whether the output projection has a bias.
        dropout: Probability of dropping an attention weight in training.
        rope: Whether queries and keys are rotated by their positions
            (:func:`~gatework.layers.positions.rotary_embedding`).
        rope_theta: Base of the wavelengths of the rotation.

    Attributes:
        mask: Who may attend to whom.
        max_cached: Number of tokens that the state keeps at most; ``None`` for all.

    Raises:
        ValueError: If heads do not divide, ``rope`` meets an odd head size, or a number is out of range.
    """

    official_names: ClassVar[Mapping[str, str]] = {"Wqkv.weight": "qkv.weight", "Wqkv.bias": "qkv.bias"}
    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)
    mask: Mask
    max_cached: int | None

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        rope: bool = False,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", num_heads)
        check_flags(qkv_bias=qkv_bias, out_bias=out_bias, rope=rope)
        check_probability("dropout", dropout)
        check_positive(rope_theta=rope_theta)
        if rope and self.head_dim % 2:
            raise ValueError(f"rope needs an even dim // num_heads, got {dim} // {num_heads}")
        self.dropout = dropout
        self.rope_theta = rope_theta if rope else None
        self.qkv = nn.Linear(dim, (num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(dim, dim, bias=out_bias)
        self.mask = Causal()
        self.max_cached = None

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        return self._attend(*self._project(x))

    def forward_documents(
        self,
        x: Float[Tensor, "rows length channels"],
        documents: PackedDocuments,
        *,
        tokens: Int[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length channels"]:
        """Mix packed documents: under one mask where that is faster, else in groups."""
        if documents.are_whole_rows or not self._masks_documents(x, documents):
            return super().forward_documents(x, documents, tokens=tokens)
        q, k, v = self._project(documents.concatenate(x))
        if self.rope_theta is not None:
            # Counted from where the document begins: late in a stream, angles would have lost digits.
            q, k = (_rotated_at(each, documents.concatenated_positions, self.rope_theta) for each in (q, k))
        mask = documents.mask if isinstance(self.mask, Causal) else documents.mask & self.mask
        y = attention(q, k, v, mask=mask)
        return documents.split_to_rows(self.out_proj(y.transpose(1, 2).flatten(2)))

    def _masks_documents(self, x: Tensor, documents: PackedDocuments) -> bool:
        """Whether one mask of all documents is possible and, measured on a CPU, the faster way.

        It needs a pattern that is the same wherever a document begins, and compiled tiles: PyTorch's
        operators need three times as long for them, and all pairs of a stream too much memory.
        """
        return (
            self.mask.is_relative
            and documents.num_tokens >= _LEAST_MEAN_LENGTH * len(documents.lengths)
            and not (self.training and self.dropout)
            and x.device.type == "cpu"
            and x.dtype != torch.float64
            and kernels.is_available()
        )

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"keys", "values"}`` of the tokens that later ones may attend to."""
        cached = StateTensor((self.num_kv_heads, None, self.head_dim))
        return {"keys": cached, "values": cached}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel; the state keeps its dtype."""
        state = self._after(state, x)
        q, k, v = self._project(x)
        keys = torch.cat([state["keys"], k.to(state["keys"].dtype)], 2)
        values = torch.cat([state["values"], v.to(state["values"].dtype)], 2)
        y = self._attend(q, keys.to(q.dtype), values.to(q.dtype))
        forgotten = keys.shape[2] - self._cached(keys.shape[2])
        return y, {"keys": keys[:, :, forgotten:], "values": values[:, :, forgotten:]}

    def state_size(self, length: int) -> int:
        """Return the elements of the cached keys and values after ``length`` tokens."""
        return 2 * self.num_kv_heads * self.head_dim * self._cached(length)

    def published_state_size(self, length: int) -> int:
        """Keys and values of every token, or of a whole window whatever has been read."""
        tokens = length if self.max_cached is None else self.max_cached
        return 2 * self.num_kv_heads * self.head_dim * tokens

    def _cached(self, length: int) -> int:
        return length if self.max_cached is None else min(length, self.max_cached)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``(batch, heads, length, head_dim)`` each."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} channels, got shape {tuple(x.shape)}")
        heads = self.num_heads + 2 * self.num_kv_heads
        qkv = self.qkv(x).reshape(*x.shape[:2], heads, self.head_dim).transpose(1, 2)
        return torch.split_with_sizes(qkv, [self.num_heads, self.num_kv_heads, self.num_kv_heads], 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the last tokens over all of ``k`` and ``v``, projected to the output.

        Rotated products depend on differences of positions only, so that positions may be counted
        from the oldest key at hand, whatever has been forgotten before it.
        """
        past = k.shape[2] - q.shape[2]
        if self.rope_theta is not None:
            q = rotary_embedding(q, start=past, theta=self.rope_theta)
            k = rotary_embedding(k, theta=self.rope_theta)
        y = attention(
            q, k, v, mask=self._mask_of(q.shape[2], past), dropout_p=self.dropout if self.training else 0.0
        )
        output: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return output

    def _mask_of(self, queries: int, past: int) -> Mask | None:
        """Who of the last tokens may attend to whom: a single one to all that the state holds."""
        return None if queries == 1 else self.mask.with_query_offset(past)


def _rotated_at(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate a single sequence whose tokens have any positions: as many sequences of one token."""
    return rotary_embedding(x.permute(2, 1, 0, 3), start=positions, theta=theta).permute(2, 1, 0, 3)


class SlidingWindowAttention(MultiHeadAttention):
    """Causal attention to the ``window_size`` tokens before a token, and to itself.

    The definition is that of :class:`MultiHeadAttention` with the window of arXiv:2004.05150, section 3;
    the forward pass costs O(length * window_size), and the state keeps ``window_size`` tokens.

    Args:
        dim: Number of channels.
        num_heads: See :class:`MultiHeadAttention`, as all other options.
        window_size: How many tokens before its own a token attends to.

    Raises:
        ValueError: If ``window_size`` is negative; and as in :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        window_size: int = 64,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        out_bias: bool = True,
        dropout: float = 0.0,
        rope: bool = False,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            dropout=dropout,
            rope=rope,
            rope_theta=rope_theta,
        )
        check_int("window_size", window_size, at_least=0)
        self.mask = SlidingWindow(window_size, 0)
        self.max_cached = window_size
