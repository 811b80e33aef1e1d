"""Attention at some positions only: learned, random or programmed look-ups (arXiv:2312.04927, section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import (
    check_compat,
    check_counts,
    check_divides,
    check_flags,
    check_number,
    check_probability,
    check_sizes,
)
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layers.sequence.packed_documents import PackedDocuments
from gatework.masks import Causal
from gatework.masks.earlier_blocks import hashed
from gatework.ops.attention import attention
from gatework.ops.causal_ranks import causal_ranks

#: Selected queries per sequence that attend at a time.
_QUERIES = 256


class _Lookups(Mixer):
    """``y_t = x_t + s_t * attention(x)_t`` at selected positions, ``y_t = x_t`` elsewhere.

    Subclasses say which positions are selected and hand them to :meth:`_look_up`. The state begins with the
    keys and values of all tokens read.
    """

    official_names: ClassVar[Mapping[str, str]] = {"Wqkv.weight": "qkv.weight", "Wqkv.bias": "qkv.bias"}
    residual_outputs: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        check_probability("dropout", dropout)
        check_flags(qkv_bias=qkv_bias)
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out_proj = nn.Linear(dim, dim)
        self.mask = Causal()

    def state_layout(self) -> dict[str, StateTensor]:
        """Keys and values of all tokens."""
        growing = StateTensor((self.num_heads, None, self.head_dim))
        return {"keys": growing, "values": growing}

    def state_size(self, length: int) -> int:
        """Return the elements of the keys and values of ``length`` tokens."""
        return 2 * self.dim * length

    def _project(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Queries, and the keys and values of the tokens of ``state`` and of ``x``."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} channels, got shape {tuple(x.shape)}")
        qkv = self.qkv(x).reshape(*x.shape[:2], 3 * self.num_heads, self.head_dim).transpose(1, 2)
        q, *read = torch.split_with_sizes(qkv, [self.num_heads] * 3, 1)
        new = dict(zip(("keys", "values"), read, strict=True))
        if state is None:
            return q, new
        return q, {
            name: torch.cat([state[name], each.to(state[name].dtype)], 2) for name, each in new.items()
        }

    def _look_up(
        self,
        x: Float[Tensor, "batch length channels"],
        q: Float[Tensor, "batch heads length head_dim"],
        read: State,
        selected: Bool[Tensor, "batch length"] | None,
        weights: Float[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """Attend at the ``selected`` positions, everywhere if ``None``, and add what is found to ``x``.

        Attention is computed for the selected queries alone, in time by their number, unless they are most,
        or a graph of fixed shapes is being recorded.
        """
        k, v = read["keys"].to(q.dtype), read["values"].to(q.dtype)
        rows = q.shape[2]
        if selected is not None and rows > 1 and not torch.compiler.is_compiling():
            rows = int(selected.sum(1).max()) if selected.numel() else 0
        if selected is None or 2 * rows >= q.shape[2]:
            found = self._attend(q, k, v)
            if weights is not None:
                found = found * weights.unsqueeze(2)
            if selected is not None:
                found = torch.where(selected.unsqueeze(2), found, 0)
            return (x + found).to(x.dtype)
        # The selected positions in order, then others where a sequence has fewer of them than another.
        places = (~selected).to(torch.int8).argsort(dim=1, stable=True)[:, :rows]
        found = self._attend_at(q, k, v, places)
        scale = selected.gather(1, places).to(found.dtype)
        if weights is not None:
            scale = scale * weights.gather(1, places)
        return x.scatter_add(
            1, places.unsqueeze(2).expand_as(found), (found * scale.unsqueeze(2)).to(x.dtype)
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of the last tokens over all of ``k`` and ``v``, projected to the output."""
        mask = None if q.shape[2] == 1 else self.mask.with_query_offset(k.shape[2] - q.shape[2])
        return self._output(attention(q, k, v, mask=mask, dropout_p=self._dropout_p))

    def _attend_at(self, q: Tensor, k: Tensor, v: Tensor, places: Tensor) -> Tensor:
        """The same at ``places`` among the queries only, some of them at a time."""
        positions = places + k.shape[2] - q.shape[2]
        keys = torch.arange(k.shape[2], device=k.device)
        pieces = []
        for start in range(0, places.shape[1], _QUERIES):
            piece = slice(start, start + _QUERIES)
            index = places[:, None, piece, None].expand(-1, self.num_heads, -1, self.head_dim)
            mask = keys <= positions[:, None, piece, None]
            pieces.append(attention(q.gather(2, index), k, v, mask=mask, dropout_p=self._dropout_p))
        return self._output(torch.cat(pieces, 2) if pieces else q[:, :, :0])

    @property
    def _dropout_p(self) -> float:
        return self.dropout if self.training else 0.0

    def _output(self, y: Tensor) -> Tensor:
        output: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return output


def _budget(positions: Int[Tensor, " length"], num_lookups: int | None) -> Int[Tensor, " length"]:
    """How many look-ups the sequence up to each position may have: ``ceil(sqrt(tokens))`` by default."""
    if num_lookups is not None:
        return torch.full_like(positions, num_lookups)
    tokens = positions + 1
    root = tokens.float().sqrt().long()  # too large or too small by one where float32 has not the digits
    root = root - (root * root > tokens).long()
    return root + (root * root < tokens).long()


class SigmoidLookups(_Lookups):
    """Learned look-ups: ``y_t = x_t + sigmoid(w . x_t) * attention(x)_t``, in evaluation at few positions.

    Input-dependent sparse attention (arXiv:2312.04927, section 5, and the code of Zoology). Training attends
    everywhere, and :meth:`auxiliary_loss` pushes the mean of the sigmoids down to the share of look-ups. In
    evaluation position ``t`` is selected if its score ``w . x_t`` is among the highest ``n`` of those up to
    ``t``, with ``n = num_lookups`` or ``ceil(sqrt(t + 1))``; of equal scores the earlier counts as higher.
    The state holds keys, values and scores of all tokens.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        num_lookups: Positions that are selected; the root of the length by default.
        penalty: Weight of the auxiliary loss.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Probability of dropping an attention weight in training.
        compat: ``"official"`` selects the highest scores of the whole sequence in evaluation, as the authors
            do: it looks ahead, and cannot decode.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``, or a number is out of range.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        num_lookups: int | None = None,
        penalty: float = 0.001,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        compat: Literal["official"] | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, dropout=dropout)
        if num_lookups is not None:
            check_sizes(num_lookups=num_lookups)
        check_number("penalty", penalty, at_least=0)
        self.num_lookups, self.penalty = num_lookups, penalty
        self.looks_ahead = check_compat(compat)
        self.selecting = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        q, read = self._project(x, None)
        scores = self._scores(x)
        return self._look_up(x, q, read, self._selected(scores, x.shape[1]), scores.sigmoid())

    def forward_documents(
        self,
        x: Float[Tensor, "rows length channels"],
        documents: PackedDocuments,
        *,
        tokens: Int[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length channels"]:
        """Mix packed documents.

        Raises:
            ValueError: If selection looks ahead, with ``compat="official"``: it would see what pads them.
        """
        if self.looks_ahead and not (self.training or documents.are_whole_rows):
            raise ValueError('compat="official" looks ahead: the mixer cannot read packed documents')
        return super().forward_documents(x, documents, tokens=tokens)

    def state_layout(self) -> dict[str, StateTensor]:
        """Keys, values and scores of all tokens.

        Raises:
            ValueError: If selection looks ahead, with ``compat="official"``.
        """
        if self.looks_ahead:
            raise ValueError('compat="official" looks ahead: the mixer cannot decode token by token')
        return {**super().state_layout(), "scores": StateTensor((None,), "wide")}

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel; in training it attends everywhere, as :meth:`forward`."""
        state = self._after(state, x)
        q, read = self._project(x, state)
        new = self._scores(x)
        scores = torch.cat([state["scores"], new.to(state["scores"].dtype)], 1)
        y = self._look_up(x, q, read, self._selected(scores, x.shape[1]), new.sigmoid())
        return y, {**read, "scores": scores}

    def state_size(self, length: int) -> int:
        """Return the elements of keys, values and scores of ``length`` tokens."""
        return (2 * self.dim + 1) * length

    def auxiliary_loss(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, ""] | None:
        """Return ``penalty * relu(mean_t sigmoid(w . x_t) - n / length)`` in training, else ``None``.

        ``n`` is ``num_lookups``, or the root of the length, not rounded.
        """
        if not self.training:
            return None
        scores, length = self._scores(x), x.shape[1]
        if scores.numel() == 0:
            return scores.sum()
        lookups = math.sqrt(length) if self.num_lookups is None else self.num_lookups
        return self.penalty * (scores.sigmoid().mean() - lookups / length).relu()

    def _scores(self, x: Tensor) -> Tensor:
        """``w . x_t`` in at least float32: with few digits scores would tie."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(wide), self.selecting.weight.to(wide)).squeeze(2)

    def _selected(self, scores: Tensor, rows: int) -> Tensor | None:
        """Whether each of the last ``rows`` positions is selected."""
        if self.training:
            return None
        length = scores.shape[1]
        if self.looks_ahead:
            lookups = math.ceil(math.sqrt(length)) if self.num_lookups is None else self.num_lookups
            best = scores.topk(min(lookups, length), dim=1).indices
            return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
        positions = torch.arange(length - rows, length, device=scores.device)
        if rows == 1:
            ranks = (scores[:, :-1] >= scores[:, -1:]).sum(1, keepdim=True)
        else:
            ranks = causal_ranks(scores)[:, length - rows :]
        return ranks < _budget(positions, self.num_lookups)


class RandomLookups(_Lookups):
    """Random look-ups: ``y_t = x_t + attention(x)_t`` at positions drawn at random, ``y_t = x_t`` elsewhere.

    The control of arXiv:2312.04927, section 5, whose exact rule the paper leaves open; this one is ours.
    Position ``t`` is selected with probability ``share``, or else ``min(1, n / (t + 1))``: the rule of
    :class:`SigmoidLookups` for scores that are pure noise, with as many look-ups on average. What is drawn
    depends on ``seed`` and ``t`` alone, so that it is the same in all forms and for any length.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        num_lookups: The ``n`` above; ``ceil(sqrt(t + 1))`` by default.
        share: Share of all positions, in place of ``num_lookups``.
        seed: What the random numbers begin with.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``, a number is out of range, or both numbers of
            look-ups are given.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        num_lookups: int | None = None,
        share: float | None = None,
        seed: int = 0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, dropout=dropout)
        if num_lookups is not None:
            check_sizes(num_lookups=num_lookups)
        if share is not None:
            check_number("share", share, at_least=0, at_most=1)
        if share is not None and num_lookups is not None:
            raise ValueError(f"give share or num_lookups, not both, got {share} and {num_lookups}")
        check_counts(seed=seed)
        self.num_lookups, self.share, self.seed = num_lookups, share, seed

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        q, read = self._project(x, None)
        return self._look_up(x, q, read, self._selected(x, 0))

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel."""
        state = self._after(state, x)
        q, read = self._project(x, state)
        return self._look_up(x, q, read, self._selected(x, state["keys"].shape[2])), read

    def _selected(self, x: Tensor, past: int) -> Tensor:
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        drawn = hashed(self.seed, positions)  # over 2^32 a number between 0 and 1
        if self.share is None:
            selected = drawn * (positions + 1) < _budget(positions, self.num_lookups) * 2**32
        else:
            selected = drawn < int(self.share * 2**32)
        return selected.expand(x.shape[0], -1)


class ProgrammaticLookups(_Lookups):
    """Look-ups at repeated tokens: ``y_t = x_t + attention(x)_t`` there, and ``y_t = x_t`` elsewhere.

    The programmed selection of arXiv:2312.04927, section 5, whose details the paper leaves open; this rule
    is ours: position ``t`` is selected if its last ``order`` tokens, itself included, have occurred in this
    order before in the sequence. Mixing needs the token ids, and the state holds them.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        order: 1 for repeated tokens, 2 for repeated pairs of tokens, and so on.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Probability of dropping an attention weight in training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``, or ``order`` is less than 1.
    """

    reads_tokens: ClassVar[bool] = True

    def __init__(
        self, dim: int, *, num_heads: int = 1, order: int = 1, qkv_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, dropout=dropout)
        check_sizes(order=order)
        self.order = order

    def forward(
        self,
        x: Float[Tensor, "batch length channels"],
        *,
        tokens: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence with the ids ``tokens``.

        Raises:
            ValueError: If there are no tokens, or not one for each position.
        """
        tokens = _checked_tokens(tokens, x)
        q, read = self._project(x, None)
        return self._look_up(x, q, read, occurred_before(tokens, self.order))

    def state_layout(self) -> dict[str, StateTensor]:
        """Keys, values and ids of all tokens."""
        return {**super().state_layout(), "tokens": StateTensor((None,), "integer")}

    def prefill(
        self,
        x: Float[Tensor, "batch length channels"],
        state: State | None = None,
        *,
        tokens: Int[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel.

        Raises:
            ValueError: If there are no tokens, or not one for each position.
        """
        tokens = _checked_tokens(tokens, x)
        state = self._after(state, x)
        q, read = self._project(x, state)
        tokens = torch.cat([state["tokens"], tokens.to(state["tokens"].dtype)], 1)
        if x.shape[1] == 1:
            selected = _last_occurred_before(tokens, self.order)
        else:
            selected = occurred_before(tokens, self.order)[:, state["tokens"].shape[1] :]
        return self._look_up(x, q, read, selected), {**read, "tokens": tokens}

    def step(
        self,
        x: Float[Tensor, "batch channels"],
        state: State,
        *,
        tokens: Int[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token, whose id is ``tokens``.

        Raises:
            ValueError: If there is no token for each sequence.
        """
        y, state = self.prefill(
            x.unsqueeze(1), state, tokens=None if tokens is None else tokens.unsqueeze(-1)
        )
        return y.squeeze(1), state

    def state_size(self, length: int) -> int:
        """Return the elements of keys, values and ids of ``length`` tokens."""
        return (2 * self.dim + 1) * length


def occurred_before(tokens: Int[Tensor, "batch length"], order: int = 1) -> Bool[Tensor, "batch length"]:
    """Say where the last ``order`` tokens have occurred before, in O(length log length).

    Sorted by these tokens, and equal ones by position, all but the first of each kind have.
    """
    batch, length = tokens.shape
    if length < order:
        return torch.zeros_like(tokens, dtype=torch.bool)
    ends = torch.arange(order - 1, length, device=tokens.device).expand(batch, -1)
    for back in range(order):
        ends = ends.gather(1, tokens.gather(1, ends - back).argsort(dim=1, stable=True))
    repeated = torch.ones_like(ends[:, 1:], dtype=torch.bool)
    for back in range(order):
        key = tokens.gather(1, ends - back)
        repeated = repeated & (key[:, 1:] == key[:, :-1])
    return torch.zeros_like(tokens, dtype=torch.bool).scatter(1, ends[:, 1:], repeated)


def _last_occurred_before(tokens: Tensor, order: int) -> Tensor:
    """The last column of :func:`occurred_before`, in O(length)."""
    count = tokens.shape[1] - order
    if count < 1:
        return torch.zeros_like(tokens[:, :1], dtype=torch.bool)
    equal = torch.ones_like(tokens[:, :count], dtype=torch.bool)
    for back in range(order):
        equal = equal & (tokens[:, order - 1 - back :][:, :count] == tokens[:, -1 - back, None])
    return equal.any(1, keepdim=True)


def _checked_tokens(tokens: Tensor | None, x: Tensor) -> Tensor:
    if tokens is None:
        raise ValueError("tokens must be given: this mixer selects positions by their token ids")
    if tokens.shape != x.shape[:2] or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be integers of shape {tuple(x.shape[:2])}, one for each position, "
            f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    return tokens
