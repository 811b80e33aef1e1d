"""Based's linear attention: the exponential of softmax replaced by its second-order Taylor series.

``exp(s) ~ 1 + s + s^2/2`` is a dot product of features, so a state of fixed size replaces the cache of
keys and values. Source: arXiv:2402.18668, section 4.1; arXiv:2312.04927, appendix.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gatework.checks import check_number
from gatework.ops.recurrence.linear_recurrence import chunk_recurrence, split_chunks

_CHUNK = 128


def taylor_attention_reference(
    q: Float[Tensor, "batch heads length feature_dim"],
    k: Float[Tensor, "batch heads length feature_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = True,
    eps: float = 1e-12,
) -> Float[Tensor, "batch heads length value_dim"]:
    """``y_i = sum_j w_ij v_j / (sum_j w_ij + eps)`` with ``w = 1 + s + s^2/2``, ``s = q.k/sqrt(f)``."""
    scores = q @ k.mT * math.sqrt(1 / q.shape[-1])
    weights = 1 + scores + scores.square() / 2
    if is_causal:
        weights = weights.tril()
    normaliser: Tensor = weights.sum(-1, keepdim=True) + eps
    return weights @ v / normaliser


def taylor_attention(
    q: Float[Tensor, "batch heads length feature_dim"],
    k: Float[Tensor, "batch heads length feature_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    *,
    is_causal: bool = True,
    eps: float = 1e-12,
) -> Float[Tensor, "batch heads length value_dim"]:
    """Attention with Taylor weights, in O(length) time and memory.

    Computes what :func:`taylor_attention_reference` defines. Within a chunk of 128 tokens the weights
    are formed from plain scores, which are far fewer than features; between chunks the state of
    :func:`taylor_features` travels.

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys.
        v: Values.
        is_causal: Whether a token sees only itself and earlier tokens.
        eps: Added to the sum of weights, which is positive by itself.

    Raises:
        ValueError: If the shapes do not match.
    """
    _check_shapes(q, k, v)
    check_number("eps", eps, at_least=0)
    if is_causal:
        return taylor_attention_prefill(q, k, v, _zero_state(q, v), eps=eps)[0]
    if v.numel() == 0:
        return v * 0
    with torch.autocast(q.device.type, enabled=False):
        dtype = _compute_dtype(q, v)
        state = taylor_features(k.to(dtype)).mT @ _with_ones(v.to(dtype))
        return _normalise(taylor_features(q.to(dtype)) @ state, eps).to(v.dtype)


def taylor_attention_prefill(
    q: Float[Tensor, "batch heads length feature_dim"],
    k: Float[Tensor, "batch heads length feature_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    state: Float[Tensor, "batch heads features value_dim_and_1"],
    *,
    eps: float = 1e-12,
) -> tuple[
    Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads features value_dim_and_1"]
]:
    """Causal :func:`taylor_attention` that continues after ``state`` and returns the state it ends in.

    The state is ``sum_j phi(k_j) [v_j, 1]^T``: the last column sums the weights.
    """
    if v.numel() == 0:
        return v * 0, state  # empty, and part of the graph
    with torch.autocast(q.device.type, enabled=False):
        dtype, length = torch.promote_types(_compute_dtype(q, v), state.dtype), q.shape[2]
        queries, keys, values = (split_chunks(tensor.to(dtype), _CHUNK) for tensor in (q, k, v))
        # Padding keys would weigh 1 (the constant feature) were their ones not padded with zeros too.
        ones = split_chunks(torch.ones_like(v[..., :1], dtype=dtype), _CHUNK)
        values = torch.cat([values, ones], -1)
        scores = queries @ keys.mT * q.shape[-1] ** -0.5
        within = (1 + scores + scores.square() / 2).tril() @ values
        sums, state = chunk_recurrence(
            within, taylor_features(queries), taylor_features(keys), values, None, state.to(dtype)
        )
        return _normalise(sums.flatten(2, 3)[:, :, :length], eps).to(v.dtype), state


def taylor_features(x: Float[Tensor, "*rest feature_dim"]) -> Float[Tensor, "*rest features"]:
    """Features with ``phi(q).phi(k) = 1 + s + s^2/2`` for ``s = q.k/sqrt(f)``.

    Of the symmetric second-order terms only one of each pair is kept, weighted by ``sqrt(2)``: there are
    ``1 + f + f(f+1)/2`` features, :func:`taylor_feature_count`, instead of ``1 + f + f^2``.
    """
    dim = x.shape[-1]
    # Row i of the triangle needs the products of x_i with x_i .. x_f: slices avoid an index gather, whose
    # backward would scatter element by element.
    x = x * dim**-0.25
    diagonal = x.square() * math.sqrt(0.5)
    rows = [x[..., i : i + 1] * x[..., i + 1 :] for i in range(dim - 1)]
    return torch.cat([torch.ones_like(x[..., :1]), x, diagonal, *rows], -1)


def taylor_feature_count(feature_dim: int) -> int:
    """Number of features that :func:`taylor_features` makes of ``feature_dim`` channels."""
    return 1 + feature_dim + feature_dim * (feature_dim + 1) // 2


def _zero_state(q: Tensor, v: Tensor) -> Tensor:
    features = taylor_feature_count(q.shape[-1])
    shape = (*q.shape[:2], features, v.shape[-1] + 1)
    return torch.zeros(shape, dtype=_compute_dtype(q, v), device=q.device)


def _with_ones(v: Tensor) -> Tensor:
    return F.pad(v, (0, 1), value=1.0)


def _normalise(sums: Tensor, eps: float) -> Tensor:
    return sums[..., :-1] / (sums[..., -1:] + eps)


def _compute_dtype(q: Tensor, v: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.ndim != 4 or k.shape != q.shape or q.shape[-1] == 0:
        raise ValueError(
            f"q and k must have one shape (batch, heads, length, feature_dim>=1), "
            f"got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must have shape (batch, heads, length, value_dim) with the first three of q, "
            f"{tuple(q.shape[:3])}, got {tuple(v.shape)}"
        )
