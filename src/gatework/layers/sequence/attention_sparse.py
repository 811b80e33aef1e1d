"""Softmax attention over a fixed sparse pattern: a window, the first tokens, and random blocks."""

from __future__ import annotations

from gatework.checks import check_int
from gatework.layers.sequence.attention import MultiHeadAttention
from gatework.masks import Causal, GlobalWindow, Mask, RandomBlocks

#: Blocks of the window before a token, and of first tokens that all see, as in Zoology's code.
_WINDOW_BLOCKS, _GLOBAL_BLOCKS = 3, 2


class BigBird(MultiHeadAttention):
    """Causal attention to a window, the first tokens, and some random blocks before a token's own.

    The definition is that of :class:`~gatework.layers.sequence.attention.MultiHeadAttention` with the pattern
    of arXiv:2007.14062, section 2, in the sizes of Zoology's code: the ``3 * block_size`` tokens before a
    token and itself, the first ``2 * block_size`` tokens, and ``num_random`` of the blocks before. That
    code draws single random pairs anew in every call, so that no two calls agree and no state can decode;
    here blocks are drawn once, by ``seed``. Whole sequences take time linear in the length; the state holds
    all keys and values, since any of them may be drawn later.

    Args:
        dim: Number of channels.
        num_heads: See :class:`~gatework.layers.sequence.attention.MultiHeadAttention`, as all other options.
        block_size: Tokens of a block.
        num_random: Random blocks that the queries of a block see.
        seed: What the random numbers begin with.

    Raises:
        ValueError: If ``block_size`` is less than 1, ``num_random`` or ``seed`` is negative; and as in
            :class:`~gatework.layers.sequence.attention.MultiHeadAttention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        block_size: int = 128,
        num_random: int = 3,
        seed: int = 0,
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
        self.block_size = check_int("block_size", block_size, at_least=1)
        near = GlobalWindow(_WINDOW_BLOCKS * block_size, _GLOBAL_BLOCKS * block_size) & Causal()
        self.mask = near | RandomBlocks(block_size, num_random, seed)

    def published_state_size(self, length: int) -> int:
        """Return what Zoology counts: seven blocks of keys and values."""
        return 2 * 7 * self.block_size * self.dim

    def _mask_of(self, queries: int, past: int) -> Mask:
        """The same for any number of queries: the state holds more than a single one may attend to."""
        return self.mask.with_query_offset(past)
