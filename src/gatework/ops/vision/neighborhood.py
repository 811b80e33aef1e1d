"""Neighbourhood attention on grids of one to three axes: every token attends to the window around it.

The functions have the arguments of NATTEN, the authors' library, in its order and with its layout (heads
last), and run wherever PyTorch does, with gradients. Sources: arXiv:2204.07143 (neighbourhood attention),
arXiv:2209.15001 (dilation), arXiv:2504.16922 (stride; several axes at once).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gatework.masks import Causal, Mask
from gatework.ops.attention import attention, attention_reference
from gatework.ops.vision.neighborhood_engine import (
    NattenOptions,
    check_options,
    natten_attention,
    uses_natten,
)
from gatework.ops.vision.neighborhood_windows import Flags, Sizes, WindowSpec, window_spec

_Tokens = Float[Tensor, "batch *grid heads head_dim"]
_KeyTokens = Float[Tensor, "batch *grid kv_heads head_dim"]
_ValueTokens = Float[Tensor, "batch *grid kv_heads value_dim"]
_ExtraKeys = Float[Tensor, "batch extra kv_heads head_dim"]
_ExtraValues = Float[Tensor, "batch extra kv_heads value_dim"]
_Outputs = Float[Tensor, "batch *grid heads value_dim"]
_LogSumExp = Float[Tensor, "batch *grid heads"]


def axis_neighbors(
    length: int, window: int, stride: int = 1, dilation: int = 1, is_causal: bool = False
) -> Bool[Tensor, "length length"]:
    """The definition of one axis: ``allowed[i, j]`` says whether query ``i`` may attend to key ``j``.

    Tokens whose positions are equal modulo ``dilation`` form a class; within one, ``p`` counts the query and
    ``n`` the tokens. The leader of a group of ``stride`` queries decides where its window begins.
    """
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        start, p = i % dilation, i // dilation
        n = (length - start + dilation - 1) // dilation
        group = p // stride * stride
        if is_causal:
            leader = min(group + stride - 1, n - 1)
            window_keys = range(max(leader - window + 1, 0), p + 1)
        else:
            leader = min(group + stride // 2, n - 1)
            first = min(max(leader - window // 2, 0), n - window)
            window_keys = range(first, first + window)
        for key in window_keys:
            allowed[i, start + key * dilation] = True
    return allowed


def neighborhood_reference(
    query: _Tokens,
    key: _KeyTokens,
    value: _ValueTokens,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    *,
    scale: float | None = None,
    additional_keys: _ExtraKeys | None = None,
    additional_values: _ExtraValues | None = None,
) -> tuple[_Outputs, _LogSumExp]:
    """The definition: softmax attention over the keys that every axis allows, and over all additional ones.

    See :func:`na2d` for the arguments and :func:`axis_neighbors` for the rule of one axis.

    Returns:
        The outputs, and the natural logarithm of the softmax's denominator.
    """
    grid = query.shape[1:-2]
    spec = window_spec(len(grid), kernel_size, stride, dilation, is_causal).on(grid)
    allowed = torch.ones(1, 1, dtype=torch.bool)
    for axis in zip(grid, *spec, strict=True):
        allowed = torch.kron(allowed, axis_neighbors(*axis))
    q, k, v = (_sequence(tensor) for tensor in (query, key, value))
    if additional_keys is not None and additional_values is not None:
        k = torch.cat([k, additional_keys.transpose(1, 2)], 2)
        v = torch.cat([v, additional_values.transpose(1, 2)], 2)
        allowed = torch.cat([allowed, allowed.new_ones(len(allowed), additional_keys.shape[1])], 1)
    output, lse = attention_reference(q, k, v, mask=allowed.to(q.device), scale=scale)
    return _grid(output, grid), _grid(lse, grid)


def neighborhood_attention(
    query: _Tokens,
    key: _KeyTokens,
    value: _ValueTokens,
    spec: WindowSpec,
    *,
    scale: float | None = None,
    additional_keys: _ExtraKeys | None = None,
    additional_values: _ExtraValues | None = None,
    return_lse: bool = False,
    options: NattenOptions = NattenOptions(),  # noqa: B008 (a value),
) -> tuple[_Outputs, _LogSumExp | None]:
    """Neighbourhood attention on a grid of one to three axes, in time linear in its tokens.

    Computes what :func:`neighborhood_reference` defines, by :func:`gatework.ops.attention` or by NATTEN.
    Windows and additional tokens are two softmaxes, merged by their log-sum-exp
    (:func:`merge_attentions`); where the windows are the whole grid there is one.

    Args:
        query: Queries, heads last.
        key: Keys; their heads may divide those of ``query``.
        value: Values, of any ``value_dim``.
        spec: The windows, which may be whole axes.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        additional_keys: Keys that every query sees, besides its window.
        additional_values: Their values.
        return_lse: Whether the log-sum-exp is needed; without it the fastest kernels are open.
        options: Whether NATTEN runs the call, and how.

    Returns:
        The outputs, contiguous; the log-sum-exp, or ``None`` if it was not needed.

    Raises:
        TypeError: If ``attention_kwargs`` is no mapping.
        ValueError: If shapes, dtypes, windows or options do not fit.
    """
    extra = _check_tensors(query, key, value, additional_keys, additional_values)
    check_options(options)
    grid = query.shape[1:-2]
    spec = spec.on(grid)
    if uses_natten(query, options):
        found = natten_attention(query, key, value, spec, scale, extra, options)
        if found is not None:
            return found
    q, k, v = (_sequence(tensor) for tensor in (query, key, value))
    mask = _mask(spec, grid)
    if extra is None:
        output, lse = _attend(q, k, v, mask, scale, return_lse)
    else:
        more_k, more_v = (tensor.transpose(1, 2) for tensor in extra)
        if mask is None:
            k, v = torch.cat([k, more_k], 2), torch.cat([v, more_v], 2)
            output, lse = _attend(q, k, v, None, scale, return_lse)
        else:
            near, near_lse = _attend(q, k, v, mask, scale, True)
            more, more_lse = _attend(q, more_k, more_v, None, scale, True)
            assert near_lse is not None and more_lse is not None, "they were asked for"  # noqa: PT018
            output, lse = _merge([near, more], [near_lse, more_lse])
    return _grid(output, grid), None if lse is None else _grid(lse, grid)


def na1d(
    query: Float[Tensor, "batch length heads head_dim"],
    key: Float[Tensor, "batch length kv_heads head_dim"],
    value: Float[Tensor, "batch length kv_heads value_dim"],
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: _ExtraKeys | None = None,
    additional_values: _ExtraValues | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: int | Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> (
    Float[Tensor, "batch length heads value_dim"]
    | tuple[Float[Tensor, "batch length heads value_dim"], Float[Tensor, "batch length heads"]]
):
    """Neighbourhood attention on a sequence of tokens: :func:`na2d` with one axis."""
    options = NattenOptions(
        attention_kwargs=attention_kwargs,
        backend=backend,
        q_tile_shape=q_tile_shape,
        kv_tile_shape=kv_tile_shape,
        backward_q_tile_shape=backward_q_tile_shape,
        backward_kv_tile_shape=backward_kv_tile_shape,
        backward_kv_splits=backward_kv_splits,
        backward_use_pt_reduction=backward_use_pt_reduction,
        run_persistent_kernel=run_persistent_kernel,
        kernel_schedule=kernel_schedule,
        torch_compile=torch_compile,
    )
    spec = window_spec(1, kernel_size, stride, dilation, is_causal)
    return _run(query, key, value, spec, scale, additional_keys, additional_values, options, return_lse)


def na2d(  # noqa: D417 (NattenOptions describes the others)
    query: Float[Tensor, "batch height width heads head_dim"],
    key: Float[Tensor, "batch height width kv_heads head_dim"],
    value: Float[Tensor, "batch height width kv_heads value_dim"],
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: _ExtraKeys | None = None,
    additional_values: _ExtraValues | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: int | Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> (
    Float[Tensor, "batch height width heads value_dim"]
    | tuple[Float[Tensor, "batch height width heads value_dim"], Float[Tensor, "batch height width heads"]]
):
    """Neighbourhood attention on a plane of tokens, with the arguments of NATTEN's ``na2d`` in its order.

    ``o_i = sum_j softmax_j(scale * q_i . k_j) v_j`` over the keys ``j`` that :func:`axis_neighbors` allows on
    every axis, and over all additional ones. Query head ``h`` uses key head ``h // (heads // kv_heads)``.

    Args:
        query: Queries, heads last.
        key: Keys.
        value: Values, of any ``value_dim``.
        kernel_size: Tokens in a window, at least 2; -1 is a whole axis. A tuple has one entry for each axis.
        stride: Neighbours that share a window, at most ``kernel_size``.
        dilation: Distance between tokens of a window.
        is_causal: Whether queries see no later tokens of an axis.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        additional_keys: ``(batch, extra, kv_heads, head_dim)``, seen by every query.
        additional_values: ``(batch, extra, kv_heads, value_dim)``.
        backend: Who computes it. This and all arguments up to ``torch_compile`` change only the speed;
            :class:`~gatework.ops.vision.neighborhood_engine.NattenOptions` explains them.
        return_lse: Also return the natural logarithm of the softmax's denominator, ``(batch, height, width,
            heads)``.

    Raises:
        ValueError: If shapes do not fit, ``kernel_size * dilation`` exceeds an axis, ``stride`` exceeds
            ``kernel_size``, or an argument has no meaning.
    """
    options = NattenOptions(
        attention_kwargs=attention_kwargs,
        backend=backend,
        q_tile_shape=q_tile_shape,
        kv_tile_shape=kv_tile_shape,
        backward_q_tile_shape=backward_q_tile_shape,
        backward_kv_tile_shape=backward_kv_tile_shape,
        backward_kv_splits=backward_kv_splits,
        backward_use_pt_reduction=backward_use_pt_reduction,
        run_persistent_kernel=run_persistent_kernel,
        kernel_schedule=kernel_schedule,
        torch_compile=torch_compile,
    )
    spec = window_spec(2, kernel_size, stride, dilation, is_causal)
    return _run(query, key, value, spec, scale, additional_keys, additional_values, options, return_lse)


def na3d(
    query: Float[Tensor, "batch depth height width heads head_dim"],
    key: Float[Tensor, "batch depth height width kv_heads head_dim"],
    value: Float[Tensor, "batch depth height width kv_heads value_dim"],
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: _ExtraKeys | None = None,
    additional_values: _ExtraValues | None = None,
    attention_kwargs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    q_tile_shape: Sequence[int] | None = None,
    kv_tile_shape: Sequence[int] | None = None,
    backward_q_tile_shape: Sequence[int] | None = None,
    backward_kv_tile_shape: Sequence[int] | None = None,
    backward_kv_splits: int | Sequence[int] | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> (
    Float[Tensor, "batch depth height width heads value_dim"]
    | tuple[
        Float[Tensor, "batch depth height width heads value_dim"],
        Float[Tensor, "batch depth height width heads"],
    ]
):
    """Neighbourhood attention on a volume of tokens: :func:`na2d` with three axes."""
    options = NattenOptions(
        attention_kwargs=attention_kwargs,
        backend=backend,
        q_tile_shape=q_tile_shape,
        kv_tile_shape=kv_tile_shape,
        backward_q_tile_shape=backward_q_tile_shape,
        backward_kv_tile_shape=backward_kv_tile_shape,
        backward_kv_splits=backward_kv_splits,
        backward_use_pt_reduction=backward_use_pt_reduction,
        run_persistent_kernel=run_persistent_kernel,
        kernel_schedule=kernel_schedule,
        torch_compile=torch_compile,
    )
    spec = window_spec(3, kernel_size, stride, dilation, is_causal)
    return _run(query, key, value, spec, scale, additional_keys, additional_values, options, return_lse)


def merge_attentions(
    outputs: Sequence[_Outputs],
    lse_tensors: Sequence[_LogSumExp],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[_Outputs, _LogSumExp]:
    """Merge attentions of the same queries over different keys into the attention over all of them.

    With ``lse = log(sum_p exp(lse_p))`` the merged output is ``sum_p exp(lse_p - lse) o_p``: exact, in
    float32 at least, and differentiable in all arguments.

    Args:
        outputs: One output for each set of keys; each set has its own softmax.
        lse_tensors: Their log-sum-exps; ``-inf`` where a query was allowed no key.
        torch_compile: Without effect, for NATTEN's sake; so is ``use_autograd_fix``.
        use_autograd_fix: See ``torch_compile``.

    Returns:
        The output over all keys in the dtype of the first one, and its log-sum-exp.

    Raises:
        ValueError: If there is no output, another number of log-sum-exps, or shapes differ.
    """
    if len(outputs) == 0 or len(outputs) != len(lse_tensors):
        raise ValueError(
            "outputs and lse_tensors must be as many, one at least, "
            f"got {len(outputs)} outputs and {len(lse_tensors)} lse_tensors"
        )
    shape = outputs[0].shape
    for number, (output, lse) in enumerate(zip(outputs, lse_tensors, strict=True)):
        if output.shape != shape:
            raise ValueError(
                f"outputs must have one shape, got {tuple(shape)} and outputs[{number}] {tuple(output.shape)}"
            )
        if lse.shape != shape[:-1]:
            raise ValueError(
                f"lse_tensors must have the shape of outputs without the last axis, {tuple(shape[:-1])}, "
                f"got lse_tensors[{number}] {tuple(lse.shape)}"
            )
    return _merge(outputs, lse_tensors)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: WindowSpec,
    scale: float | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
    options: NattenOptions,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Check the number of axes, and return what the caller asked for."""
    num_axes = len(spec.kernel_size)
    if query.ndim != num_axes + 3:
        raise ValueError(
            f"query must have shape (batch, {num_axes} axes of tokens, heads, head_dim), "
            f"got {tuple(query.shape)}"
        )
    output, lse = neighborhood_attention(
        query,
        key,
        value,
        spec,
        scale=scale,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
        options=options,
    )
    if not return_lse:
        return output
    assert lse is not None, "it was asked for"
    return output, lse


def _merge(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge over the last axis of ``outputs``, whatever the ones before it."""
    dtype = torch.promote_types(outputs[0].dtype, torch.float32)
    lses = torch.stack([lse.to(dtype) for lse in lse_tensors])
    # Where no part has a key the sum is zero; any finite lse then makes the weights exp(-inf) = 0, not NaN.
    nothing = lses.isneginf().all(0)
    total = torch.logsumexp(lses.masked_fill(nothing, 0.0), 0)
    weights = torch.exp(lses - total).unsqueeze(-1)
    merged = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        merged = torch.addcmul(merged, weight, output.to(dtype))
    return merged.to(outputs[0].dtype), total.masked_fill(nothing, -torch.inf)


def _mask(spec: WindowSpec, grid: Sequence[int]) -> Mask | None:
    """Who may attend to whom; the cheapest mask there is."""
    if len(grid) == 1 and spec.kernel_size == tuple(grid) and spec.is_causal[0]:
        return Causal()
    return spec.mask(grid)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None, scale: float | None, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    if return_lse:
        return attention(q, k, v, mask=mask, scale=scale, return_lse=True)
    return attention(q, k, v, mask=mask, scale=scale), None


def _sequence(tensor: Tensor) -> Tensor:
    """A grid of tokens, heads last, as a sequence, heads first: a view where memory allows."""
    return tensor.flatten(1, -3).transpose(1, 2)


def _grid(tensor: Tensor, grid: Sequence[int]) -> Tensor:
    """Undo :func:`_sequence`, for outputs and log-sum-exps; contiguous, as callers of NATTEN expect."""
    tokens: Tensor = tensor.transpose(1, 2).unflatten(1, tuple(grid))
    return tokens.contiguous()


def _check_tensors(
    query: Tensor, key: Tensor, value: Tensor, extra_keys: Tensor | None, extra_values: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Refuse tensors that do not fit each other; return the additional keys and values."""
    tensors = {"query": query, "key": key, "value": value}
    if extra_keys is not None and extra_values is not None:
        tensors |= {"additional_keys": extra_keys, "additional_values": extra_values}
    elif extra_keys is not None or extra_values is not None:
        missing = "additional_keys" if extra_keys is None else "additional_values"
        raise ValueError(f"additional_keys and additional_values go together, got {missing}=None")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
        # Under autocast the projections of one layer may differ in dtype, and PyTorch casts them itself.
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise ValueError(f"{name} must have the dtype of query, {query.dtype}, got {tensor.dtype}")
    heads, dim = query.shape[-2:]
    kv_heads = key.shape[-2] if key.ndim == query.ndim else 0
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ValueError(
            f"key must have shape {(*query.shape[:-2], 'kv_heads', dim)} with kv_heads that divide "
            f"the {heads} heads of query, got {tuple(key.shape)}"
        )
    wanted = {"key": (*query.shape[:-2], kv_heads, dim), "value": (*query.shape[:-2], kv_heads)}
    if extra_keys is not None and extra_values is not None:
        extra = extra_keys.shape[1] if extra_keys.ndim == 4 else "extra"
        wanted["additional_keys"] = (query.shape[0], extra, kv_heads, dim)
        wanted["additional_values"] = (query.shape[0], extra, kv_heads, value.shape[-1])
    for name, shape in wanted.items():
        got = tuple(tensors[name].shape)
        if name == "value":
            shape = (*shape, got[-1] if len(got) == query.ndim else "value_dim")
        if got != shape:
            raise ValueError(f"{name} must have shape {shape} to match query and key, got {got}")
    return None if extra_keys is None or extra_values is None else (extra_keys, extra_values)
