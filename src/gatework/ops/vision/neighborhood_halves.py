"""Neighbourhood attention in two halves: the logits of a window, and the weighted sum over one.

A query has as many logits as its window has taps: tap ``t``, row by row over the window, is the key
``start + t * dilation`` of the query's dilation class, where ``start`` begins the window (arXiv:2204.07143,
arXiv:2209.15001). Tensors are heads first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding

from gatework.masks import Neighborhood
from gatework.ops.vision.neighborhood_windows import WindowSpec

_Tokens = Float[Tensor, "batch heads *grid head_dim"]
_Logits = Float[Tensor, "batch heads *grid taps"]
_Extra = Float[Tensor, "batch heads extra head_dim"]
_Bias = Float[Tensor, "heads *offsets"]
_CroppedBias = Float[Tensor, "heads *cropped"]


class _Taps:
    """The windows of a grid: which key every tap of every query is, one tap at a time.

    Attributes:
        grid: Size of the grid.
        window: Taps of a window along each axis.
    """

    def __init__(self, grid: Sequence[int], spec: WindowSpec, device: torch.device) -> None:
        self.grid = tuple(grid)
        self.spec = spec
        self.window = spec.kernel_size
        self._keys, self._seen = [], []
        mask = Neighborhood(self.grid, self.window, dilation=spec.dilation, is_causal=spec.is_causal)
        for axis, window in enumerate(self.window):
            windows = mask.axis(axis)
            place = windows.low[:, None] + torch.arange(window)
            self._keys.append((windows.q_class[:, None] + place * windows.dilation).to(device))
            self._seen.append((place < windows.high[:, None]).to(device))

    def __len__(self) -> int:
        return math.prod(self.window)

    def keys(self) -> Iterator[Tensor]:
        """For each tap the key of every query: positions in the flattened grid."""
        for tap in range(len(self)):
            yield self._combined(self._keys, self._unraveled(tap))

    def seen(self) -> Tensor | None:
        """Which taps a query has, ``(queries, taps)``; ``None`` if all, as without a causal axis."""
        if not any(self.spec.is_causal):
            return None
        seen = self._seen[0]
        for axis in self._seen[1:]:
            seen = (seen[:, None, :, None] & axis[None, :, None, :]).flatten(2, 3).flatten(0, 1)
        return seen

    def offsets(self) -> Tensor:
        """Which entry of the relative bias, flattened, every tap of every query has: ``(queries, taps)``."""
        found = self._keys[0].new_zeros(1, 1)
        for keys, gap, window in zip(self._keys, self.spec.dilation, self.window, strict=True):
            queries = torch.arange(len(keys), device=keys.device)
            steps = (keys - queries[:, None]) // gap + (window - 1)
            found = found[:, None, :, None] * (2 * window - 1) + steps[None, :, None, :]
            found = found.flatten(2, 3).flatten(0, 1)
        return found

    def _unraveled(self, tap: int) -> list[int]:
        places = []
        for window in reversed(self.window):
            tap, place = divmod(tap, window)
            places.append(place)
        return places[::-1]

    def _combined(self, keys: Sequence[Tensor], tap: Sequence[int]) -> Tensor:
        found = keys[0].new_zeros(1)
        for axis, place, length in zip(keys, tap, self.grid, strict=True):
            found = (found[:, None] * length + axis[:, place]).flatten()
        return found


# The three functions below are adjoint to each other, so that each is the derivative of the others, to any
# order. Tensors are (tokens, batch * heads, dim), weights (taps, tokens, batch * heads): rows of memory that
# one index moves. None holds more than one tap at a time besides its result.


class _Dots(torch.autograd.Function):
    """``dots[t, i] = x[i] . y[key(i, t)]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, taps: _Taps) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.taps = taps
        dots = x.new_empty(len(taps), *x.shape[:2])
        for out, keys in zip(dots, taps.keys(), strict=True):
            torch.sum(x * y.index_select(0, keys), -1, out=out)
        return dots

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y = ctx.saved_tensors
        taps = ctx.taps
        need = ctx.needs_input_grad
        grad_x = _Gathered.apply(grad, y, taps) if need[0] else None
        return grad_x, _Scattered.apply(grad, x, taps) if need[1] else None, None


class _Gathered(torch.autograd.Function):
    """``sums[i] = sum_t weights[t, i] * y[key(i, t)]``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, y: Tensor, taps: _Taps) -> Tensor:
        ctx.save_for_backward(weights, y)
        ctx.taps = taps
        sums = torch.zeros_like(y)
        for weight, keys in zip(weights, taps.keys(), strict=True):
            sums.addcmul_(weight.unsqueeze(-1), y.index_select(0, keys))
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, y = ctx.saved_tensors
        taps = ctx.taps
        need = ctx.needs_input_grad
        grad_weights = _Dots.apply(grad, y, taps) if need[0] else None
        return grad_weights, _Scattered.apply(weights, grad, taps) if need[1] else None, None


class _Scattered(torch.autograd.Function):
    """``sums[j] = sum of weights[t, i] * x[i] over all (i, t) with key(i, t) = j``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, taps: _Taps) -> Tensor:
        ctx.save_for_backward(weights, x)
        ctx.taps = taps
        sums = torch.zeros_like(x)
        for weight, keys in zip(weights, taps.keys(), strict=True):
            sums.index_add_(0, keys, weight.unsqueeze(-1) * x)
        return sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, x = ctx.saved_tensors
        taps = ctx.taps
        need = ctx.needs_input_grad
        grad_weights = _Dots.apply(x, grad, taps) if need[0] else None
        return grad_weights, _Gathered.apply(weights, grad, taps) if need[1] else None, None


def neighborhood_logits(
    query: _Tokens,
    key: _Tokens,
    spec: WindowSpec,
    *,
    rpb: _Bias | None = None,
    additional_keys: _Extra | None = None,
) -> _Logits:
    """Logits of every query with its taps, ``query_i . key_(start + t * dilation) + rpb``, and extra keys.

    Takes O(tokens * taps) time and no more memory than its result, forward and backward; half precisions are
    computed in float32. What a causal axis hides is ``-inf``.

    Args:
        query: Queries, scaled by the caller.
        key: Keys on the same grid.
        spec: The windows, of stride 1.
        rpb: Bias of every offset, ``(heads, 2 * window - 1, ...)`` with one axis per axis of the grid.
        additional_keys: Keys that every query sees.

    Raises:
        NotImplementedError: If a causal axis meets ``rpb``.
        ValueError: If shapes or dtypes do not fit.
    """
    _check_tokens("query", query, len(spec.kernel_size))
    _check_like("key", key, query, tuple(query.shape))
    batch, heads, *grid, dim = query.shape
    spec = spec.on(grid)
    if additional_keys is not None:
        extra = additional_keys.shape[-2] if additional_keys.ndim == 4 else "extra"
        _check_like("additional_keys", additional_keys, query, (batch, heads, extra, dim))
    if rpb is not None:
        _check_bias(rpb, heads, spec)
    taps = _Taps(grid, spec, query.device)
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        dots: Tensor = _Dots.apply(_rows(query.to(dtype)), _rows(key.to(dtype)), taps)
        logits = dots.permute(2, 1, 0).reshape(batch, heads, math.prod(grid), len(taps))
        if rpb is not None:
            logits = logits + embedding(taps.offsets(), rpb.to(dtype).flatten(1).T).permute(2, 0, 1)
        seen = taps.seen()
        if seen is not None:
            logits = logits.masked_fill(~seen, -torch.inf)
        if additional_keys is not None:
            more = query.to(dtype).flatten(2, -2) @ additional_keys.to(dtype).mT
            logits = torch.cat([logits, more], -1)
    return logits.to(query.dtype).reshape(batch, heads, *grid, logits.shape[-1]).contiguous()


def neighborhood_weighted_sum(
    attn: _Logits, value: _Tokens, spec: WindowSpec, *, additional_values: _Extra | None = None
) -> _Tokens:
    """Sum of every query's taps: ``sum_t attn_it value_(start + t * dilation)``, and of the extra values.

    The weights may be any numbers; those of taps that a causal axis hides are not used. Cost as that of
    :func:`neighborhood_logits`.

    Args:
        attn: Weights of the taps, in their order, then of the additional values.
        value: Values on the grid.
        spec: The windows, of stride 1.
        additional_values: Values that every query sees.

    Returns:
        The sums, in the dtype of ``value``.

    Raises:
        ValueError: If shapes or dtypes do not fit.
    """
    _check_tokens("value", value, len(spec.kernel_size))
    batch, heads, *grid, dim = value.shape
    spec = spec.on(grid)
    extra: int | str = 0
    if additional_values is not None:
        extra = additional_values.shape[-2] if additional_values.ndim == 4 else "extra"
        _check_like("additional_values", additional_values, value, (batch, heads, extra, dim))
    taps = _Taps(grid, spec, value.device)
    _check_like("attn", attn, value, (batch, heads, *grid, len(taps) + int(extra)))
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        weights = attn.to(dtype).flatten(2, -2)
        near, seen = weights[..., : len(taps)], taps.seen()
        if seen is not None:
            near = near.masked_fill(~seen, 0.0)
        rows = near.permute(3, 2, 0, 1).flatten(2)
        sums: Tensor = _Gathered.apply(rows, _rows(value.to(dtype)), taps)
        output = sums.unflatten(1, (batch, heads)).permute(1, 2, 0, 3)
        if additional_values is not None:
            output = output + weights[..., len(taps) :] @ additional_values.to(dtype)
    tokens: Tensor = output.to(value.dtype).reshape(value.shape)
    return tokens.contiguous()


def crop_bias(rpb: _Bias, window: Sequence[int]) -> _CroppedBias:
    """The part of a relative bias that a smaller window needs: its middle, where the offsets are small."""
    for axis, size in enumerate(window, 1):
        surplus = (rpb.shape[axis] + 1) // 2 - size
        rpb = rpb.narrow(axis, surplus, 2 * size - 1)
    return rpb


def _rows(tensor: Tensor) -> Tensor:
    """``(batch, heads, *grid, dim)`` as ``(tokens, batch * heads, dim)``."""
    return tensor.flatten(2, -2).permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def _check_tokens(name: str, tensor: Tensor, num_axes: int) -> None:
    if tensor.ndim != num_axes + 3 or not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape (batch, heads, {num_axes} axes of tokens, head_dim), "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _check_like(name: str, tensor: Tensor, other: Tensor, shape: tuple[int | str, ...]) -> None:
    """Refuse a tensor of another shape, or of another dtype than ``other`` has."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    # Under autocast a softmax between the halves is float32, and projections may differ.
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(other.device.type):
        raise ValueError(
            f"{name} must have the dtype of the other tensors, {other.dtype}, got {tensor.dtype}"
        )


def _check_bias(rpb: Tensor, heads: int, spec: WindowSpec) -> None:
    if any(spec.is_causal):
        raise NotImplementedError(f"rpb cannot be combined with is_causal={spec.is_causal}")
    shape = (heads, *(2 * size - 1 for size in spec.kernel_size))
    if tuple(rpb.shape) != shape or not rpb.is_floating_point():
        raise ValueError(
            f"rpb must be floating point of shape (heads, 2 * kernel_size - 1, ...)={shape}, "
            f"got {rpb.dtype} of shape {tuple(rpb.shape)}"
        )
