"""Native sparse attention: compressed blocks, the best blocks in full, and a window (arXiv:2502.11089)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from gatework.checks import (
    check_compat,
    check_counts,
    check_divides,
    check_flags,
    check_positive,
    check_sizes,
)
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.layouts import Layout
from gatework.masks import Causal, CompressedBlocks, SlidingWindow
from gatework.ops.attention import attention
from gatework.ops.selected_attention import selected_attention

#: A block whose share of a query's importance is not above this is not selected, as in the authors' code.
_LEAST_IMPORTANCE = 1e-10
#: What takes part in the softmax over blocks besides them: the logit of selecting none.
_NO_BLOCK = -1e3
#: Scores of blocks per sequence that are held at a time.
_SCORES = 1 << 22


class NativeSparseAttention(Mixer):
    """``y = W_o concat_h(sum_s gate_hs * branch_s)``, three ways of looking at the past, gated per head.

    With ``h = RMSNorm(x)``, queries, keys and values ``W_qkv h``, and blocks of ``block_size`` tokens:

    - *compressed* (section 3.3.1): attention to one key and value per block, which a small network makes of
      the block's tokens and their places in it, and to ``num_memory`` learned pairs; a query sees the blocks
      that ended before it;
    - *selected* (section 3.3.2): attention to the tokens of the ``num_selected_blocks`` blocks with the
      highest compressed scores (without any whose share of their softmax is below 1e-10), and to those of
      its own block up to itself;
    - *window* (section 3.3.3): attention to the ``window_size`` tokens before it, and itself.

    The last two rotate queries and keys by their positions (neighbouring channels are a pair). Gates are
    ``sigmoid(W_g h)``. A last block that is not full yet is seen by the last two only. Zoology's code, after
    which this is modelled, needs lengths that blocks divide; any length is the start of a longer one here.

    The state holds keys before rotation, values, and the compressed keys and values.

    Args:
        dim: Number of channels.
        num_heads: Number of query heads; divides ``dim``, with an even quotient.
        num_kv_heads: Number of key and value heads; divides ``num_heads``, and is equal to it by default.
        block_size: Tokens of a block.
        num_selected_blocks: Blocks that a query reads in full besides its own. With 0 the second branch
            attends to all earlier tokens, as in the authors' code.
        window_size: How many tokens before its own the window has.
        num_memory: Learned pairs of keys and values in the compressed branch, at least 1.
        compress_ratio: Hidden width of the networks that compress, over that of their input, which is
            ``block_size * head_dim``.
        heads_share_blocks: Whether query heads that share keys select the same blocks, by their mean score.
        norm: Whether there is the norm in front.
        norm_eps: Its epsilon.
        compat: ``"official"`` lets the window look as far ahead as back, which is the default of Zoology's
            code, and which cannot decode.

    Raises:
        ValueError: If heads do not divide, their size is odd, or a number is out of range.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "to_qkv.weight": "qkv.weight",
        "combine_heads.weight": "o_proj.weight",
        "to_strategy_combine.0.weight": "gates.weight",
        "to_strategy_combine.0.bias": "gates.bias",
        "compress_mem_kv": "memory",
        "k_intrablock_positions": "k_positions",
        "v_intrablock_positions": "v_positions",
        **{
            f"{x}_compress.{theirs}.{what}": f"{x}_compress.{ours}.{what}"
            for x in "kv"
            for theirs, ours in ((1, 0), (3, 2))
            for what in ("weight", "bias")
        },
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        block_size: int = 16,
        num_selected_blocks: int = 4,
        window_size: int = 64,
        num_memory: int = 1,
        compress_ratio: float = 1.0,
        heads_share_blocks: bool = True,
        norm: bool = True,
        norm_eps: float = torch.finfo(torch.float32).eps,
        compat: Literal["official"] | None = None,
    ) -> None:
        super().__init__(dim)
        self.head_dim = check_divides("num_heads", num_heads, "dim", dim)
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_divides("num_kv_heads", self.num_kv_heads, "num_heads", num_heads)
        if self.head_dim % 2:
            raise ValueError(f"dim // num_heads must be even to be rotated, got {dim} // {num_heads}")
        check_sizes(block_size=block_size, window_size=window_size, num_memory=num_memory)
        check_counts(num_selected_blocks=num_selected_blocks)
        check_positive(compress_ratio=compress_ratio, norm_eps=norm_eps)
        check_flags(heads_share_blocks=heads_share_blocks, norm=norm)
        hidden = int(compress_ratio * block_size * self.head_dim)
        if hidden < 1:
            raise ValueError(f"compress_ratio must leave a hidden channel, got {compress_ratio}")
        self.block_size, self.num_selected_blocks = block_size, num_selected_blocks
        self.window_size, self.heads_share_blocks = window_size, heads_share_blocks
        self.looks_ahead = check_compat(compat)
        self.norm = nn.RMSNorm(dim, eps=norm_eps) if norm else nn.Identity()
        self.qkv = nn.Linear(dim, (num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=False)
        self.memory = nn.Parameter(torch.zeros(2, self.num_kv_heads, num_memory, self.head_dim))
        places = (self.num_kv_heads, block_size, self.head_dim)
        self.k_positions, self.v_positions = (nn.Parameter(torch.zeros(places)) for _ in range(2))
        self.k_compress, self.v_compress = (
            nn.Sequential(
                nn.Linear(block_size * self.head_dim, hidden), nn.ReLU(), nn.Linear(hidden, self.head_dim)
            )
            for _ in range(2)
        )
        self.gates = nn.Linear(dim, 3 * num_heads)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.past_mask = Causal()
        self.compressed_mask = CompressedBlocks(block_size, num_memory)
        self.window_mask = SlidingWindow(window_size, window_size if self.looks_ahead else 0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with the window open and the other gates nearly closed: ``sigmoid(-2, -2, 2)``."""
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor([-2.0, -2.0, 2.0]).repeat(self.num_heads))

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        normed = self.norm(x)
        q, k, v = self._project(normed)
        return self._attend(
            normed, q, k, v, *self._compress(k, v, done=0, count=self._num_blocks(x.shape[1]))
        )

    def state_layout(self) -> dict[str, StateTensor]:
        """Keys and values of all tokens, and those of all blocks: zeros for a last one that is not full yet.

        Raises:
            ValueError: If the window looks ahead, with ``compat="official"``.
        """
        if self.looks_ahead:
            raise ValueError('compat="official" looks ahead: the mixer cannot decode token by token')
        growing = StateTensor((self.num_kv_heads, None, self.head_dim))
        return dict.fromkeys(("keys", "values", "compressed_keys", "compressed_values"), growing)

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel; the state keeps its dtype.

        Raises:
            ValueError: If the state has not one compressed key for each block.
        """
        state = self._after(state, x)
        past, blocks = state["keys"].shape[2], state["compressed_keys"].shape[2]
        if blocks != self._num_blocks(past):
            raise ValueError(
                f"state['compressed_keys'] must have one key for each block of {self.block_size} of {past} "
                f"tokens, got {blocks}"
            )
        normed = self.norm(x)
        q, *new = self._project(normed)
        keys, values = (_appended(state[name], x) for name, x in zip(("keys", "values"), new, strict=True))
        done = past // self.block_size
        count = 1 if x.shape[1] == 1 else self._num_blocks(keys.shape[2]) - done
        compressed = self._compress(keys.to(q.dtype), values.to(q.dtype), done=done, count=count)
        # Picked, not sliced: to a graph of any length it matters whether a slice is the whole.
        full = torch.arange(done, device=x.device)
        ck, cv = (
            _appended(state[name].index_select(2, full), x)
            for name, x in zip(("compressed_keys", "compressed_values"), compressed, strict=True)
        )
        y = self._attend(normed, q, *(x.to(q.dtype) for x in (keys, values, ck, cv)))
        return y, {"keys": keys, "values": values, "compressed_keys": ck, "compressed_values": cv}

    def state_size(self, length: int) -> int:
        """Return the elements of keys and values of ``length`` tokens and of their blocks."""
        return 2 * self.num_kv_heads * self.head_dim * (length + self._num_blocks(length))

    def published_state_size(self, length: int) -> int:
        """Return what Zoology counts: compressed keys and values, a window, and the selected blocks."""
        read = self.window_size + self.block_size * self.num_selected_blocks
        return 2 * self.dim * (length // self.block_size + read)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The authors' layout, whose table of rotary frequencies is a constant here."""
        marks = ("to_qkv.weight|rotary_emb.freqs",)
        return (Layout("official", marks, renames=self.official_names, convert=self._without_frequencies),)

    def _without_frequencies(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the rotary frequencies.

        Raises:
            ValueError: If they are others than ours.
        """
        frequencies = weights.pop("rotary_emb.freqs", None)
        if frequencies is not None:
            exponents = torch.arange(0, self.head_dim, 2, device=frequencies.device) / self.head_dim
            expected = (10000.0**-exponents).to(frequencies.dtype)
            if frequencies.shape != expected.shape or not torch.allclose(frequencies, expected, rtol=1e-2):
                raise ValueError(
                    f"rotary_emb.freqs must be 10000^(-2i/{self.head_dim}) for i < {self.head_dim // 2}, "
                    f"got {frequencies.tolist()}"
                )
        return weights

    def _project(self, normed: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, ``(batch, heads, length, head_dim)`` each."""
        if normed.shape[-1] != self.dim:
            raise ValueError(f"x must have {self.dim} channels, got shape {tuple(normed.shape)}")
        heads = self.num_heads + 2 * self.num_kv_heads
        qkv = self.qkv(normed).reshape(*normed.shape[:2], heads, self.head_dim).transpose(1, 2)
        return torch.split_with_sizes(qkv, [self.num_heads, self.num_kv_heads, self.num_kv_heads], 1)

    def _num_blocks(self, length: int) -> int:
        return -(-length // self.block_size)

    def _compress(self, k: Tensor, v: Tensor, *, done: int, count: int) -> tuple[Tensor, Tensor]:
        """One key and one value of each of the last ``count`` blocks, after ``done`` ones.

        A last block that is not full gets zeros, which nothing looks at: the state then has as many entries
        as there are blocks, and one more token fills or begins one, in steps of a single shape.
        """
        length, size = k.shape[2], self.block_size
        ends = torch.arange(1, count + 1, device=k.device) * size + done * size
        if count == 1:
            index = (ends - size + torch.arange(size, device=k.device)).clamp(max=length - 1)
            k, v = (x.index_select(2, index) for x in (k, v))
        else:
            k, v = (
                F.pad(x[:, :, done * size :], (0, 0, 0, count * size + done * size - length)) for x in (k, v)
            )
        ck, cv = (
            torch.where(
                (ends <= length)[:, None],
                compress((x.unflatten(2, (count, size)) + places[:, None]).flatten(3)),
                0,
            )
            for x, places, compress in (
                (k, self.k_positions, self.k_compress),
                (v, self.v_positions, self.v_compress),
            )
        )
        return ck, cv

    def _attend(self, normed: Tensor, q: Tensor, k: Tensor, v: Tensor, ck: Tensor, cv: Tensor) -> Tensor:
        """All branches, for the queries of the last tokens of ``k`` and ``v``, gated and projected."""
        past = k.shape[2] - q.shape[2]
        memory = (pair.expand(q.shape[0], -1, -1, -1).to(q.dtype) for pair in self.memory)
        keys, values = (torch.cat([each, x], 2) for each, x in zip(memory, (ck, cv), strict=True))
        compressed = attention(q, keys, values, mask=self.compressed_mask.with_query_offset(past))
        rotated = _rotate(q, past), _rotate(k, 0)
        if self.num_selected_blocks == 0:
            selected = attention(*rotated, v, mask=self.past_mask.with_query_offset(past))
        else:
            blocks = self._selected_blocks(q, ck, past)
            selected = selected_attention(*rotated, v, blocks, block_size=self.block_size)
        branches = torch.stack([compressed, selected, self._window(*rotated, v)], -1)
        gates = self.gates(normed).sigmoid().unflatten(-1, (self.num_heads, 3)).transpose(1, 2)
        y = (branches * gates.unsqueeze(3)).sum(-1)
        output: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return output

    def _window(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention to the neighbourhood; of older keys none is looked at."""
        past = k.shape[2] - q.shape[2]
        if self.looks_ahead:
            # The authors fill the last window up with zeros, and look at these too.
            padding = -k.shape[2] % self.window_size
            k, v = (F.pad(x, (0, 0, 0, padding)) for x in (k, v))
        first = max(0, past - self.window_size)
        mask = self.window_mask.with_query_offset(past - first)
        return attention(q, k[:, :, first:], v[:, :, first:], mask=mask)

    @torch.no_grad()
    def _selected_blocks(
        self,
        q: Float[Tensor, "batch heads length head_dim"],
        ck: Float[Tensor, "batch kv_heads blocks head_dim"],
        past: int,
    ) -> Int[Tensor, "batch choosers length selected"]:
        """Blocks with the highest compressed scores for each query, some queries at a time; -1 for none."""
        wide = torch.promote_types(q.dtype, torch.float32)
        grouped = q.to(wide).unflatten(1, (self.num_kv_heads, -1))
        keys = ck.to(wide).unsqueeze(2).mT
        length = q.shape[2]
        rows = 1 if length == 1 else max(1, _SCORES // max(1, self.num_heads * ck.shape[2]))
        with torch.autocast(q.device.type, enabled=False):
            chosen = [
                self._best_blocks(grouped[:, :, :, start : start + rows] @ keys, past + start)
                for start in range(0, max(1, length), rows)
            ]
        return torch.cat(chosen, 2)

    def _best_blocks(self, products: Tensor, start: int) -> Tensor:
        """Selection of the queries from position ``start`` on, by ``(batch, kv, group, length, blocks)``."""
        length, blocks = products.shape[3:]
        scores = products * self.head_dim**-0.5
        scores = scores.mean(2) if self.heads_share_blocks else scores.flatten(1, 2)
        queries = torch.arange(start, start + length, device=scores.device)[:, None]
        ends = torch.arange(1, blocks + 1, device=scores.device) * self.block_size
        scores = scores.masked_fill(queries < ends, -torch.inf)
        best, indices = scores.topk(min(self.num_selected_blocks, blocks), -1)
        total = torch.cat([scores, torch.full_like(scores[..., :1], _NO_BLOCK)], -1) if blocks else scores
        least = total.logsumexp(-1, keepdim=True) + math.log(_LEAST_IMPORTANCE)
        chosen: Tensor = indices.where(best > least, -1)
        return chosen


def _appended(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old, new.to(old.dtype)], 2)


def _rotate(x: Tensor, start: int) -> Tensor:
    """Rotate pairs of neighbouring channels, which are then sorted: products do not see their order."""
    return rotary_embedding(torch.cat([x[..., 0::2], x[..., 1::2]], -1), start=start)
