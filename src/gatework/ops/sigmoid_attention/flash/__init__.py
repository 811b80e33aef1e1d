"""The triton engine of sigmoid attention: FlashSigmoid, in memory linear in the length, under every mask.

Forward and backward as the paper has them (arXiv:2409.04431, appendix F): tiles of pairs whose weights are
computed where they are used, forward and again backward, without a maximum, a sum or anything kept of a row.
Triton is imported by the first call.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor

from gatework.masks import Mask
from gatework.ops.attention.constants import Constant, constant, rebuilt
from gatework.ops.sigmoid_attention.flash import launch
from gatework.ops.sigmoid_attention.flash.blocks import BlockLists, block_lists
from gatework.ops.sigmoid_attention.options import SigmoidOptions

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_CHANNELS = 256


def flash(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Compute sigmoid attention over the tiles that the mask needs, by kernels of Triton."""
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (q, k, v))
    size = launch.tiles(q.shape[3], v.shape[3], q.dtype)
    lists = _lists(options.mask, q, k, size.forward, "queries")
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, options.row_bias))
    key_lists = _lists(options.mask, q, k, size.backward_keys, "keys") if trains else []
    out: Tensor = _forward_op(
        q,
        k,
        v,
        options.row_bias.to(torch.float32),
        options.pair_bias,
        None if options.slopes is None else options.slopes.to(torch.float32),
        lists,
        key_lists,
        options.query_offset,
        options.scale,
    )
    return out


def refusal(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> str | None:
    """Say what, of what is asked for, the kernels of Triton cannot do."""
    if isinstance(options.mask, Tensor):
        shape = tuple(options.mask.shape)
        return f"needs a mask whose structure it knows, a gatework.masks.Mask, got a tensor of shape {shape}"
    if options.dropout_p:
        return f"knows no dropout, got dropout_p={options.dropout_p}"
    for name, bias in (("a bias of pairs", options.pair_bias), ("alibi_slopes", options.slopes)):
        if bias is not None and bias.requires_grad and torch.is_grad_enabled():
            return f"gives no gradient of {name}"
    return _refused_dtype(q, k, v) or _refused_size(q, v) or _refused_device(q.device)


def _refused_dtype(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if torch.is_autocast_enabled(q.device.type):
        return None
    if any(tensor.dtype not in _DTYPES for tensor in (q, k, v)):
        return f"computes float32, bfloat16 and float16, got {q.dtype}"
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        return f"needs q, k and v of one dtype, got {q.dtype}, {k.dtype} and {v.dtype}"
    return None


def _refused_size(q: Tensor, v: Tensor) -> str | None:
    for name, dim in (("head_dim", q.shape[3]), ("value_dim", v.shape[3])):
        if not 1 <= dim <= _MOST_CHANNELS:
            return f"takes heads of 1 to {_MOST_CHANNELS} channels, got {name}={dim}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refused_device(device: torch.device) -> str | None:
    if not _has_triton():
        return "needs Triton, which is not installed here"
    if device.type == "cpu" and not launch.is_interpreted():
        return "computes on CUDA, and on the CPU only in Triton's interpreter (TRITON_INTERPRET=1)"
    if device.type not in ("cpu", "cuda"):
        return f"computes on CUDA, got q on {device}"
    return _refused_capability(device) if device.type == "cuda" else None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _refused_capability(device: torch.device) -> str | None:
    """What the GPU lacks: its tensor cores must know bfloat16, and what is loaded must not pass registers."""
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 8:
        return f"needs a GPU of compute capability 8.0, got {major}.{minor}"
    return None


def _lists(
    mask: Mask | Tensor | None, q: Tensor, k: Tensor, tile: launch.Tile, along: Literal["queries", "keys"]
) -> list[Tensor]:
    """The lists of tiles of a mask; none without a mask, where every tile is needed."""
    if mask is None:
        return []
    assert isinstance(mask, Mask), "refusal() lets no tensors in"
    lengths = int(q.shape[2]), int(k.shape[2])
    return list(_planned(constant(mask), *lengths, tile.rows, tile.columns, along, q.device))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # a graph holds lists, not planning
def _planned(
    mask: Constant,
    q_length: int,
    kv_length: int,
    rows: int,
    columns: int,
    along: Literal["queries", "keys"],
    device: torch.device,
) -> BlockLists:
    return block_lists(rebuilt(mask), q_length, kv_length, rows, columns, along, device)


# --- operators ---

_OPTIONS = (
    "Tensor row_bias, Tensor? pair_bias, Tensor? slopes, Tensor[] lists, Tensor[] key_lists, "
    "SymInt query_offset, float scale"
)


# The schemas are written out because annotations are wrapped where shapes are checked at run time.
@torch.library.custom_op(
    "gatework::flash_sigmoid",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> Tensor",
)
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    lists: list[Tensor],
    key_lists: list[Tensor],
    query_offset: int,
    scale: float,
) -> Tensor:
    if _is_empty(q, k):
        return q.new_zeros(*q.shape[:3], v.shape[3])
    scores = launch.scoring(row_bias, pair_bias, slopes, query_offset, scale)
    size = launch.tiles(q.shape[3], v.shape[3], q.dtype)
    out, call = launch.forward(q, k, v, scores, lists, size)
    call.run()
    return out


@_forward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


@torch.library.custom_op(
    "gatework::flash_sigmoid_backward",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor row_bias, Tensor? pair_bias, Tensor? slopes, "
    "Tensor[] lists, Tensor[] key_lists, SymInt query_offset, float scale, bool needs_row_grad) -> Tensor[]",
)
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    lists: list[Tensor],
    key_lists: list[Tensor],
    query_offset: int,
    scale: float,
    needs_row_grad: bool,
) -> list[Tensor]:
    if _is_empty(q, k):
        rows = [row_bias.new_zeros(q.shape[:3])] if needs_row_grad else []
        return [part.new_zeros(part.shape) for part in (q, k, v)] + rows
    scores = launch.scoring(row_bias, pair_bias, slopes, query_offset, scale)
    size = launch.tiles(q.shape[3], v.shape[3], q.dtype)
    grads, calls = launch.backward(
        q, k, v, grad, scores, lists, key_lists, size, needs_row_grad=needs_row_grad
    )
    for call in calls:
        call.run()
    return grads


@_backward_op.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_bias: Tensor, *rest: Any) -> list[Tensor]:
    grads = [part.new_empty(part.shape) for part in (q, k, v)]
    return [*grads, row_bias.new_empty(q.shape[:3])] if rest[-1] else grads


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, lists, key_lists, ctx.query_offset, ctx.scale = inputs
    ctx.counts = len(lists), len(key_lists)
    ctx.save_for_backward(*tensors, *lists, *key_lists)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors, lists = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
    both_lists = list(lists[: ctx.counts[0]]), list(lists[ctx.counts[0] :])
    needs_row_grad = bool(ctx.needs_input_grad[3])
    grads: list[Tensor] = _backward_op(
        grad, *tensors, *both_lists, ctx.query_offset, ctx.scale, needs_row_grad
    )
    grad_bias = grads.pop().sum_to_size(tensors[3].shape) if needs_row_grad else None
    no_lists = ([None] * count for count in ctx.counts)
    return (*grads, grad_bias, None, None, *no_lists, None, None)


_forward_op.register_autograd(_backward, setup_context=_keep_for_backward)


def _is_empty(q: Tensor, k: Tensor) -> bool:
    """Whether there is no pair of a query and a key."""
    return q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] == 0
