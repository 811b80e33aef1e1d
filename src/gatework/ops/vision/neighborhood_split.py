"""The older functions of NATTEN, by the names, argument orders and layouts that published models call.

``na2d_qk`` and ``na2d_av`` (0.15 to 0.17), ``na2d_qk_with_bias`` (0.15, 0.16) and ``natten2dqkrpb``,
``natten2dav`` (0.14; also Nat and Dinat of Transformers) are the halves of
:mod:`gatework.ops.vision.neighborhood_halves`, heads first; windows are odd and have stride 1, and queries
are scaled by the caller. ``na2d_fused`` is the function that version 0.17 called ``na2d``: heads last,
without stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_number
from gatework.ops.vision.neighborhood import neighborhood_attention
from gatework.ops.vision.neighborhood_halves import neighborhood_logits, neighborhood_weighted_sum
from gatework.ops.vision.neighborhood_windows import Flags, Sizes, WindowSpec, window_spec

_Extra = Float[Tensor, "batch heads extra head_dim"]
_ExtraLast = Float[Tensor, "batch extra heads head_dim"]


def na2d_qk(
    query: Float[Tensor, "batch heads height width head_dim"],
    key: Float[Tensor, "batch heads height width head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads rows columns"] | None = None,
) -> Float[Tensor, "batch heads height width taps"]:
    """Logits of every query with the taps of its window: ``query_i . key_(start + t * dilation) + rpb``.

    Args:
        query: Queries, scaled by the caller.
        key: Keys.
        kernel_size: Odd number of tokens in a window, at least 3.
        dilation: Distance between tokens of a window.
        additional_keys: Keys that every query sees; their logits come last.
        is_causal: Whether queries see no later tokens of an axis; hidden taps, the last ones, are ``-inf``.
        rpb: Bias of every offset between key and query in dilated steps, from ``-(kernel_size - 1)`` on.

    Returns:
        The logits, taps row by row.

    Raises:
        NotImplementedError: If a causal axis meets ``rpb``.
        ValueError: If shapes or dtypes do not fit, or ``kernel_size`` is even.
    """
    spec = _odd_windows(2, kernel_size, dilation, is_causal)
    return neighborhood_logits(query, key, spec, rpb=rpb, additional_keys=additional_keys)


def na2d_av(
    attn: Float[Tensor, "batch heads height width taps"],
    value: Float[Tensor, "batch heads height width head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_values: _Extra | None = None,
    is_causal: Flags = False,
) -> Float[Tensor, "batch heads height width head_dim"]:
    """Sum of every query's taps, with any weights: ``sum_t attn_it value_(start + t * dilation)``.

    Args:
        attn: Weights in the order of :func:`na2d_qk`; hidden taps are not used.
        value: Values.
        kernel_size: Odd number of tokens in a window, at least 3.
        dilation: Distance between tokens of a window.
        additional_values: Values that every query sees; their weights come last.
        is_causal: Whether queries see no later tokens of an axis.

    Raises:
        ValueError: If shapes or dtypes do not fit, or ``kernel_size`` is even.
    """
    spec = _odd_windows(2, kernel_size, dilation, is_causal)
    return neighborhood_weighted_sum(attn, value, spec, additional_values=additional_values)


def na2d_qk_with_bias(
    query: Float[Tensor, "batch heads height width head_dim"],
    key: Float[Tensor, "batch heads height width head_dim"],
    bias: Float[Tensor, "heads rows columns"] | None,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
) -> Float[Tensor, "batch heads height width taps"]:
    """Logits with the bias at the third place, as versions 0.15 and 0.16 have it; see :func:`na2d_qk`."""
    return na2d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na2d_fused(
    query: Float[Tensor, "batch height width heads head_dim"],
    key: Float[Tensor, "batch height width heads head_dim"],
    value: Float[Tensor, "batch height width heads head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads rows columns"] | None = None,
    scale: float | None = None,
    additional_keys: _ExtraLast | None = None,
    additional_values: _ExtraLast | None = None,
    xformers_kwargs: Mapping[str, Any] | None = None,
) -> Float[Tensor, "batch height width heads head_dim"]:
    """Softmax attention with the arguments that version 0.17 gave ``na2d``: heads last, without stride.

    With ``rpb`` it is :func:`na2d_qk`, a softmax and :func:`na2d_av`; without, today's function.

    Args:
        query: Queries, ``(batch, height, width, heads, head_dim)``.
        key: Keys.
        value: Values.
        kernel_size: Odd number of tokens in a window, at least 3.
        dilation: Distance between tokens of a window.
        is_causal: Whether queries see no later tokens of an axis.
        rpb: Bias of every offset between key and query in dilated steps, as in :func:`na2d_qk`.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        additional_keys: ``(batch, extra, heads, head_dim)``, seen by every query.
        additional_values: Their values.
        xformers_kwargs: Without effect.

    Raises:
        NotImplementedError: If a causal axis meets ``rpb``.
        ValueError: If shapes or dtypes do not fit, or ``kernel_size`` is even.
    """
    spec = _odd_windows(2, kernel_size, dilation, is_causal)
    return _fused(query, key, value, spec, rpb, scale, (additional_keys, additional_values))


def na1d_qk(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads offsets"] | None = None,
) -> Float[Tensor, "batch heads length taps"]:
    """Logits of a window, as :func:`na2d_qk`, with one axis."""
    spec = _odd_windows(1, kernel_size, dilation, is_causal)
    return neighborhood_logits(query, key, spec, rpb=rpb, additional_keys=additional_keys)


def na1d_av(
    attn: Float[Tensor, "batch heads length taps"],
    value: Float[Tensor, "batch heads length head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_values: _Extra | None = None,
    is_causal: Flags = False,
) -> Float[Tensor, "batch heads length head_dim"]:
    """Weighted sum over a window, as :func:`na2d_av`, with one axis."""
    spec = _odd_windows(1, kernel_size, dilation, is_causal)
    return neighborhood_weighted_sum(attn, value, spec, additional_values=additional_values)


def na1d_qk_with_bias(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    bias: Float[Tensor, "heads offsets"] | None,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
) -> Float[Tensor, "batch heads length taps"]:
    """Logits of a window, as :func:`na2d_qk_with_bias`, with one axis."""
    return na1d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na1d_fused(
    query: Float[Tensor, "batch length heads head_dim"],
    key: Float[Tensor, "batch length heads head_dim"],
    value: Float[Tensor, "batch length heads head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads offsets"] | None = None,
    scale: float | None = None,
    additional_keys: _ExtraLast | None = None,
    additional_values: _ExtraLast | None = None,
    xformers_kwargs: Mapping[str, Any] | None = None,
) -> Float[Tensor, "batch length heads head_dim"]:
    """Softmax attention, as :func:`na2d_fused`, with one axis."""
    spec = _odd_windows(1, kernel_size, dilation, is_causal)
    return _fused(query, key, value, spec, rpb, scale, (additional_keys, additional_values))


def na3d_qk(
    query: Float[Tensor, "batch heads depth height width head_dim"],
    key: Float[Tensor, "batch heads depth height width head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads planes rows columns"] | None = None,
) -> Float[Tensor, "batch heads depth height width taps"]:
    """Logits of a window, as :func:`na2d_qk`, with three axes."""
    spec = _odd_windows(3, kernel_size, dilation, is_causal)
    return neighborhood_logits(query, key, spec, rpb=rpb, additional_keys=additional_keys)


def na3d_av(
    attn: Float[Tensor, "batch heads depth height width taps"],
    value: Float[Tensor, "batch heads depth height width head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_values: _Extra | None = None,
    is_causal: Flags = False,
) -> Float[Tensor, "batch heads depth height width head_dim"]:
    """Weighted sum over a window, as :func:`na2d_av`, with three axes."""
    spec = _odd_windows(3, kernel_size, dilation, is_causal)
    return neighborhood_weighted_sum(attn, value, spec, additional_values=additional_values)


def na3d_qk_with_bias(
    query: Float[Tensor, "batch heads depth height width head_dim"],
    key: Float[Tensor, "batch heads depth height width head_dim"],
    bias: Float[Tensor, "heads planes rows columns"] | None,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    additional_keys: _Extra | None = None,
) -> Float[Tensor, "batch heads depth height width taps"]:
    """Logits of a window, as :func:`na2d_qk_with_bias`, with three axes."""
    return na3d_qk(query, key, kernel_size, dilation, additional_keys, rpb=bias)


def na3d_fused(
    query: Float[Tensor, "batch depth height width heads head_dim"],
    key: Float[Tensor, "batch depth height width heads head_dim"],
    value: Float[Tensor, "batch depth height width heads head_dim"],
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Float[Tensor, "heads planes rows columns"] | None = None,
    scale: float | None = None,
    additional_keys: _ExtraLast | None = None,
    additional_values: _ExtraLast | None = None,
    xformers_kwargs: Mapping[str, Any] | None = None,
) -> Float[Tensor, "batch depth height width heads head_dim"]:
    """Softmax attention, as :func:`na2d_fused`, with three axes."""
    spec = _odd_windows(3, kernel_size, dilation, is_causal)
    return _fused(query, key, value, spec, rpb, scale, (additional_keys, additional_values))


def natten2dqkrpb(
    query: Float[Tensor, "batch heads height width head_dim"],
    key: Float[Tensor, "batch heads height width head_dim"],
    rpb: Float[Tensor, "heads rows columns"],
    *sizes: int,
    kernel_size: int | None = None,
    dilation: int | None = None,
) -> Float[Tensor, "batch heads height width taps"]:
    """Logits with relative bias, as version 0.14 and Transformers' Dinat call it; see :func:`na2d_qk`.

    Args:
        query: Queries, scaled by the caller.
        key: Keys.
        rpb: Relative bias, ``(heads, 2 * kernel_size - 1, ...)``.
        sizes: ``kernel_size, dilation``; or ``dilation`` alone, as the oldest code has it.
        kernel_size: Window, if not among ``sizes``; by default that of ``rpb``.
        dilation: Dilation, if not among ``sizes``; 1 by default.

    Raises:
        ValueError: If ``rpb`` is of another window, or as :func:`na2d_qk` does.
    """
    window, step = _named(sizes, kernel_size, dilation, (rpb.shape[-1] + 1) // 2)
    return na2d_qk(query, key, window, step, rpb=rpb)


def natten2dav(
    attn: Float[Tensor, "batch heads height width taps"],
    value: Float[Tensor, "batch heads height width head_dim"],
    *sizes: int,
    kernel_size: int | None = None,
    dilation: int | None = None,
) -> Float[Tensor, "batch heads height width head_dim"]:
    """Weighted sum of windows, as version 0.14 and Transformers' Dinat call it; see :func:`na2d_av`.

    Args:
        attn: Weights of the taps.
        value: Values.
        sizes: ``kernel_size, dilation``; or ``dilation`` alone, as the oldest code has it.
        kernel_size: Window, if not among ``sizes``; by default that of as many taps as ``attn`` has.
        dilation: Dilation, if not among ``sizes``; 1 by default.

    Raises:
        ValueError: If ``attn`` has another number of taps, or as :func:`na2d_av` does.
    """
    window, step = _named(sizes, kernel_size, dilation, round(attn.shape[-1] ** 0.5))
    return na2d_av(attn, value, window, step)


def natten1dqkrpb(
    query: Float[Tensor, "batch heads length head_dim"],
    key: Float[Tensor, "batch heads length head_dim"],
    rpb: Float[Tensor, "heads offsets"],
    *sizes: int,
    kernel_size: int | None = None,
    dilation: int | None = None,
) -> Float[Tensor, "batch heads length taps"]:
    """Logits with relative bias on one axis; see :func:`natten2dqkrpb`."""
    window, step = _named(sizes, kernel_size, dilation, (rpb.shape[-1] + 1) // 2)
    return na1d_qk(query, key, window, step, rpb=rpb)


def natten1dav(
    attn: Float[Tensor, "batch heads length taps"],
    value: Float[Tensor, "batch heads length head_dim"],
    *sizes: int,
    kernel_size: int | None = None,
    dilation: int | None = None,
) -> Float[Tensor, "batch heads length head_dim"]:
    """Weighted sum over windows of one axis; see :func:`natten2dav`."""
    window, step = _named(sizes, kernel_size, dilation, attn.shape[-1])
    return na1d_av(attn, value, window, step)


def _odd_windows(num_axes: int, kernel_size: Sizes, dilation: Sizes, is_causal: Flags) -> WindowSpec:
    spec = window_spec(num_axes, kernel_size, 1, dilation, is_causal)
    if any(size < 3 or size % 2 == 0 for size in spec.kernel_size):
        raise ValueError(
            f"kernel_size must be odd and at least 3 in this older function, got {kernel_size!r}; "
            f"na{num_axes}d takes any"
        )
    return spec


def _named(
    sizes: Sequence[int], kernel_size: int | None, dilation: int | None, window: int
) -> tuple[int, int]:
    """Window and dilation from positional and named sizes; ``window`` is the one the tensors have."""
    named = {"kernel_size": kernel_size, "dilation": dilation}
    for name, size in zip(("dilation", "kernel_size"), reversed(sizes), strict=False):
        if named[name] is not None:
            raise ValueError(f"{name} must be given once, got {size} and {named[name]}")
        named[name] = size
    if len(sizes) > 2:
        raise ValueError(f"sizes must be kernel_size and dilation, got {tuple(sizes)}")
    found = window if named["kernel_size"] is None else named["kernel_size"]
    return found, 1 if named["dilation"] is None else named["dilation"]


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: WindowSpec,
    rpb: Tensor | None,
    scale: float | None,
    extra: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    if rpb is None:
        more_k, more_v = extra
        return neighborhood_attention(
            query, key, value, spec, scale=scale, additional_keys=more_k, additional_values=more_v
        )[0]
    if (extra[0] is None) != (extra[1] is None):
        missing = "additional_keys" if extra[0] is None else "additional_values"
        raise ValueError(f"additional_keys and additional_values go together, got {missing}=None")
    scale = query.shape[-1] ** -0.5 if scale is None else check_number("scale", scale)
    q, k, v = (tensor.movedim(-2, 1) for tensor in (query * scale, key, value))
    more_k, more_v = (None if tensor is None else tensor.transpose(1, 2) for tensor in extra)
    logits = neighborhood_logits(q, k, spec, rpb=rpb, additional_keys=more_k)
    weights = torch.softmax(logits, -1)
    output = neighborhood_weighted_sum(weights, v, spec, additional_values=more_v)
    return output.movedim(1, -2).contiguous()
