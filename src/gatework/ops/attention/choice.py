"""Which engine is the fastest for what is asked: by device, mask, length, and what was measured."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gatework.masks import Causal, Full, Mask, QueryOffset
from gatework.ops.attention import blocked, counting, flex
from gatework.ops.attention.constants import Constant, constant, rebuilt
from gatework.ops.attention.options import Options
from gatework.ops.attention.plan import unpack
from gatework.ops.attention.planning import TileSize, packed_plan
from gatework.ops.attention.planning_blocks import block_pattern, tile_share
from gatework.ops.engines import may_be_chosen

#: Below so many pairs of queries and keys the planning of tiles does not pay.
_FEWEST_PAIRS = 1 << 17
#: Largest share of all pairs in tiles with which they are the faster way, forward and backward: with compiled
#: kernels, and with PyTorch's operators. docs/attention.md has the measurement.
_LARGEST_SHARE = {True: 0.7, False: 0.6}


def fastest(q: Tensor, k: Tensor, v: Tensor, options: Options) -> str:
    """Return the name of the fastest engine that can do what is asked."""
    if q.shape[2] * k.shape[2] < _FEWEST_PAIRS or isinstance(options.mask, Tensor):
        return "dense"
    if isinstance(options.mask, QueryOffset) and torch.compiler.is_compiling():
        # A plan would make the offset a constant, and every step of decoding a graph of its own.
        return "dense"
    if blocked.refusal(q, k, v, options) is None:
        return "blocked" if _blocked_pays(q, k, options) else "dense"
    if (
        q.device.type == "cuda"
        and may_be_chosen("attention", "flex", q.device)
        and options.mask is not None
        and flex.refusal(q, k, v, options) is None
        and type(options.mask) in flex.TRUSTED
    ):
        return "flex"
    return "dense"


def _blocked_pays(q: Tensor, k: Tensor, options: Options) -> bool:
    """Whether tiles take less time than all pairs in PyTorch's fused kernel."""
    by_definition = options.softcap is not None or options.sinks is not None or options.return_lse
    if by_definition:
        return True
    if options.mask is None or isinstance(options.mask, Full):
        return False
    if isinstance(options.mask, Causal) and options.bias is None and q.shape[2] == k.shape[2]:
        return False  # the fused kernel skips the upper half too
    assert isinstance(options.mask, Mask)
    use_kernels = blocked.has_kernels()
    share: float = _share(constant(options.mask), int(q.shape[2]), int(k.shape[2]), use_kernels)
    return share < _LARGEST_SHARE[use_kernels]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _share(mask: Constant, q_length: int, kv_length: int, use_kernels: bool) -> float:
    whole = rebuilt(mask)
    pattern = block_pattern(whole)
    if pattern is not None:  # may be new in every call: neither planned for this, nor remembered
        return tile_share(pattern)
    return _remembered_share(whole, q_length, kv_length, blocked.tile_size(use_kernels))


@functools.lru_cache(maxsize=256)
def _remembered_share(mask: Mask, q_length: int, kv_length: int, size: TileSize) -> float:
    """The share of all pairs that is in the tiles which a mask needs."""
    pairs = counting.tile_pairs(unpack(packed_plan(mask, q_length, kv_length, size)))
    return int(pairs.sum()) / max(1, q_length * kv_length * len(pairs))
