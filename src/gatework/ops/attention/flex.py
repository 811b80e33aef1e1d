"""The flex engine: PyTorch's FlexAttention, compiled for each kind of call; forward only on CPU."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from gatework import masks
from gatework.masks import Mask, blocks
from gatework.ops.attention.options import Alibi, Options, Result
from gatework.ops.attention.planning_blocks import BlockPattern, block_classes, block_pattern
from gatework.ops.attention.reference import attention_reference

#: Masks for which the tests compare this engine with the reference, over options and lengths: for no other is
#: it chosen unasked, and for these only on devices where the tests have passed (gatework.ops.engines).
TRUSTED: frozenset[type[Mask]] = frozenset(
    {
        masks.BlockCausal,
        masks.BlockCausalDocument,
        masks.BlockSparse,
        masks.Causal,
        masks.CausalBlockwise,
        masks.CausalDocument,
        masks.Document,
        masks.Full,
        masks.GlobalWindow,
        masks.Grid,
        masks.Halo,
        masks.Neighborhood,
        masks.PrefixLM,
        masks.PrefixLMDocument,
        masks.SharedQuestion,
        masks.Slices,
        masks.SlidingWindow,
        masks.Windows,
    }
)

#: How many compiled calls and how many block masks are kept; the oldest are forgotten.
_COMPILED, _BLOCK_MASKS = 256, 64

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flex(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute attention by a kernel that is generated for the mask and skips the blocks it leaves empty.

    The first call of a kind, mask and options, shapes, dtype, takes seconds to compile.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (q, k, v))
    if not q.numel() or not k.numel() or not v.numel():
        return _of_nothing(q, k, v, options)
    # Never without a block mask: for lengths that are no multiple of its blocks the kernel for CPUs would
    # read beyond the keys (PyTorch 2.14), and return wrong numbers or NaN.
    mask = options.mask if isinstance(options.mask, Mask) else masks.Full()
    kind, block_mask = _kind_and_blocks(mask, q.shape[2], k.shape[2], q.device)
    changes = _changes(q, options)
    with_lse = options.return_lse or options.sinks is not None
    layout = [(x.shape, x.stride()) if isinstance(x, Tensor) else x for x in (q, k, v, *changes)]
    call = _compiled(kind, tuple(layout), q.dtype, q.device, options.scale, with_lse)
    with torch.autocast(device, enabled=False):
        y, lse = call(q, k, v, block_mask, changes, options.scale, with_lse)
    if options.sinks is not None:
        sinks = options.sinks.to(lse.dtype)[:, None].expand_as(lse)
        y = y * torch.sigmoid(lse - sinks)[..., None].to(y.dtype)
        lse = torch.logaddexp(lse, sinks)
    return y, lse if options.return_lse else None


def refusal(q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
    """Say what, of all that is asked for, FlexAttention cannot do; ``None`` if it can do everything."""
    if torch.compiler.is_compiling():
        return "is compiled on its own, and cannot be within torch.compile"
    if options.dropout_p:
        return f"knows no dropout, got dropout_p={options.dropout_p}"
    autocast = torch.is_autocast_enabled(q.device.type)
    if any(tensor.dtype not in _DTYPES and not autocast for tensor in (q, k, v)):
        return f"computes float32, bfloat16 and float16, got {q.dtype}"
    if len({q.dtype, k.dtype, v.dtype}) > 1 and not autocast:
        return f"needs q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}"
    return _refusal_on_cpu(q, k, v, options) if q.device.type == "cpu" else None


def _refusal_on_cpu(q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
    """What FlexAttention cannot do on CPU alone."""
    given = (q, k, v, options.bias, options.sinks)
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given):
        return "has no backward pass on CPU: call it under torch.no_grad(), or choose another engine"
    if options.return_lse:
        return "returns no log-sum-exp on CPU, got return_lse=True"
    if options.sinks is not None:
        return "takes no sinks on CPU, where it returns no log-sum-exp"
    return _missing_on_cpu()


@functools.cache
def _missing_on_cpu() -> str | None:
    """What this machine lacks to compile and run FlexAttention's kernels for the CPU."""
    compilers = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if not any(name and shutil.which(name) for name in compilers):
        return "needs a C++ compiler on CPU, and finds neither CXX nor g++, clang++ or c++"
    capability = torch.backends.cpu.get_cpu_capability()
    if sys.platform == "darwin" or not capability.startswith("AVX"):
        return f"needs a CPU with AVX2 that does not run macOS, got {capability} on {sys.platform}"
    return None


class _Changes(NamedTuple):
    """What happens to scaled scores, in the order of the definition. Bias and mask have rank 4."""

    softcap: float | None
    bias: Tensor | None
    slopes: Tensor | None
    query_offset: int
    allowed: Tensor | None

    @property
    def nothing(self) -> bool:
        """Whether scores stay as they are."""
        return all(part is None for part in (self.softcap, self.bias, self.slopes, self.allowed))


def _changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor, changes: _Changes) -> Tensor:
    """FlexAttention's ``score_mod``."""
    if changes.softcap is not None:
        score = changes.softcap * torch.tanh(score / changes.softcap)
    if changes.bias is not None:
        score = score + changes.bias[_index(changes.bias, b, h, i, j)]
    if changes.slopes is not None:
        score = score - changes.slopes[h] * (i + changes.query_offset - j).abs()
    if changes.allowed is not None:
        score = torch.where(changes.allowed[_index(changes.allowed, b, h, i, j)], score, -torch.inf)
    return score


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    changes: _Changes,
    scale: float,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """What is compiled."""
    kernel: Any = flex_attention  # its overloads know no flag that is only known at run time
    result = kernel(
        q,
        k,
        v,
        score_mod=None if changes.nothing else lambda s, b, h, i, j: _changed(s, b, h, i, j, changes),
        block_mask=block_mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_lse=with_lse,
    )
    return result if with_lse else (result, None)


def _index(tensor: Tensor, *places: Tensor) -> tuple[Tensor, ...]:
    """Places in a tensor of rank 4 that is not expanded: the only one along an axis of one."""
    return tuple(
        place if size > 1 else torch.zeros_like(place)
        for place, size in zip(places, tensor.shape, strict=True)
    )


@functools.lru_cache(maxsize=_COMPILED)
def _compiled(*key: object) -> Callable[..., tuple[Tensor, Any]]:
    """A compiled :func:`_attend` for one kind of call.

    PyTorch counts what it compiles by code object, and gives up after eight: every kind gets a copy.
    """
    plain = inspect.unwrap(_attend)  # without what checks shapes while the tests run
    copy = FunctionType(plain.__code__.replace(), plain.__globals__, "flex")
    compiled: Callable[..., tuple[Tensor, Any]] = torch.compile(copy, dynamic=False, fullgraph=True)
    return compiled


def _kind_and_blocks(
    mask: Mask, q_length: int, kv_length: int, device: torch.device
) -> tuple[object, BlockMask]:
    """What a compiled call is for, and the blocks that it is given.

    Block-sparse masks may be new in every call: blocks of one size are no part of what is compiled, only
    tables that it reads, and the pairs of a block are decided by what else there is, the causal mask.
    """
    pattern = block_pattern(mask)
    size = None if pattern is None else _kernel_size(pattern, device)
    if pattern is None or size is None:
        return mask, _block_mask(mask, q_length, kv_length, device)
    partial, full = block_classes(pattern)
    classes = blocks.states(~(partial | full), full)
    if pattern.blocks.num_heads is not None:
        classes = classes.repeat_interleave(pattern.blocks.group_size, 1)
    rest = _rest(pattern.offset)
    block_mask = blocks.to_block_mask(rest, classes, (q_length, kv_length), size, device)
    return (rest, size, classes.shape), block_mask


def _kernel_size(pattern: BlockPattern, device: torch.device) -> tuple[int, int] | None:
    """The size of blocks of queries and of keys, if the kernels read tables of such blocks.

    All but the last must be of one size. The kernel for CPUs (PyTorch 2.14) is right for keys by multiples of
    16 only, and decodes in partitions of 128; those for GPUs want multiples of their own tiles, 128 at most.
    """
    sizes = []
    for edges in pattern.edges():
        size = int(edges[1]) if len(edges) > 1 else 1
        if (edges[:-1] != size * np.arange(len(edges) - 1)).any() or edges[-1] > size * (len(edges) - 1):
            return None
        sizes.append(size)
    q_size, kv_size = sizes
    if device.type == "cpu":
        return (q_size, kv_size) if kv_size in (16, 32, 64, 128) else None
    return None if q_size % 128 or kv_size % 128 else (q_size, kv_size)


@functools.cache
def _rest(offset: int | None) -> Mask:
    """What a block-sparse mask leaves to decide, always the same object: what is compiled is for that one."""
    return masks.Full() if offset is None else masks.Causal().with_query_offset(offset)


@functools.lru_cache(maxsize=_BLOCK_MASKS)
def _block_mask(mask: Mask, q_length: int, kv_length: int, device: torch.device) -> BlockMask:
    return mask.block_mask(q_length, kv_length, device=device)


def _changes(q: Tensor, options: Options) -> _Changes:
    """What the options do to the scores."""
    bias, slopes, offset = options.bias, None, 0
    if isinstance(bias, Alibi):
        slopes = torch.tensor(bias.slopes, dtype=torch.float32, device=q.device)
        offset, bias = bias.query_offset, None
    allowed = _rank_4(options.mask) if isinstance(options.mask, Tensor) else None
    return _Changes(options.softcap, None if bias is None else _rank_4(bias).float(), slopes, offset, allowed)


def _rank_4(tensor: Tensor) -> Tensor:
    return tensor[(None,) * (4 - tensor.ndim)]


def _of_nothing(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """The result where a tensor is empty, which the compiler does not take."""
    dtype, bias = torch.promote_types(q.dtype, torch.float32), options.bias
    y, lse = attention_reference(
        q.to(dtype),
        k.to(dtype),
        v.to(dtype),
        mask=options.mask,
        bias=bias.to_dense(q.shape[2], k.shape[2], q) if isinstance(bias, Alibi) else bias,
        scale=options.scale,
        softcap=options.softcap,
        sinks=options.sinks,
    )
    return y.to(v.dtype), lse if options.return_lse else None
