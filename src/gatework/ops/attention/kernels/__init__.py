"""Blocked attention in float32 on a CPU, compiled by numba: any plan, softmax and sigmoid, both passes.

For every tile of queries, the keys that it needs are taken chunk by chunk: one matrix product for the
scores, one pass over them for the softmax with a running maximum, one product with the values (online
softmax, arXiv:2205.14135, algorithm 1, with tiles as wide as the cache). The matrix products are those of
MKL inside PyTorch, or of SciPy. numba is optional and imported by the first call.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from gatework.ops.attention.plan import Plan


@functools.cache
def is_available() -> bool:
    """Tell whether numba and a matrix product can be had; nothing is compiled yet."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    from gatework.ops.cpu import blas

    return blas.provider() is not None


def forward(
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    plan: Plan,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Float[Tensor, "_batch _heads q_length kv_length"] | None = None,
    slopes: Float[Tensor, "... heads"] | None = None,
    query_offset: int = 0,
) -> tuple[
    Float[Tensor, "batch heads q_length value_dim"],
    Float[Tensor, "batch heads q_length"],
]:
    """Attend to the keys that a plan allows.

    ``out[i] = sum_j softmax_j(s[i, j]) v[j]`` over the allowed ``j``, where ``s = scale * q[i] . k[j]``, then
    ``s = softcap * tanh(s / softcap)``, then ``s += bias[i, j] - slopes * |i + query_offset - j|``.

    Args:
        q: Queries, float32.
        k: Keys, float32; their number of heads divides that of the queries.
        v: Values, float32.
        plan: Which keys each query attends to.
        scale: What products are multiplied by.
        softcap: The bound of the scores, or None.
        bias: Added to the scores; sizes of 1 broadcast. A bias below -6e29 forbids its pair, as -inf does.
        slopes: What each head's scores lose for each step of distance; may differ by sequence.
        query_offset: Position of the first query among the keys.

    Returns:
        The outputs, and the natural log-sum-exp of the scores: zeros and -inf for queries without keys.
    """
    from gatework.ops.attention.kernels import call

    return call.run_forward(q, k, v, plan, call.ScoreOptions(scale, softcap, bias, slopes, query_offset))


def backward(
    grad_out: Float[Tensor, "batch heads q_length value_dim"],
    delta: Float[Tensor, "batch heads q_length"],
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    lse: Float[Tensor, "batch heads q_length"],
    plan: Plan,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Float[Tensor, "_batch _heads q_length kv_length"] | None = None,
    slopes: Float[Tensor, "... heads"] | None = None,
    query_offset: int = 0,
) -> tuple[
    Float[Tensor, "batch heads q_length head_dim"],
    Float[Tensor, "batch kv_heads kv_length head_dim"],
    Float[Tensor, "batch kv_heads kv_length value_dim"],
]:
    """Differentiate :func:`forward`: ``p = exp(s - lse)``, ``ds = p * (grad_out @ v.T - delta)``.

    The same number of threads gives the same bits: sums over queries are in an order that the division of
    the work fixes.

    Args:
        grad_out: Gradient of the outputs.
        delta: ``(grad_out * out).sum(-1)`` less the gradient of the log-sum-exp.
        q: Queries of the forward pass, float32.
        k: Keys, float32.
        v: Values, float32.
        lse: The log-sum-exp of the forward pass; queries at -inf get no gradient.
        plan: Which keys each query attends to.
        scale: What products are multiplied by.
        softcap: The bound of the scores, or None.
        bias: Added to the scores; gets no gradient.
        slopes: What each head's scores lose for each step of distance; get no gradient.
        query_offset: Position of the first query among the keys.

    Returns:
        The gradients of queries, keys and values.
    """
    from gatework.ops.attention.kernels import call

    options = call.ScoreOptions(scale, softcap, bias, slopes, query_offset)
    return call.run_backward(grad_out, delta, q, k, v, lse, plan, options)


def sigmoid_forward(
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    plan: Plan,
    *,
    scale: float,
    shift: Float[Tensor, "_batch _heads _queries"],
    bias: Float[Tensor, "_batch2 _heads2 q_length kv_length"] | None = None,
    slopes: Float[Tensor, "... heads"] | None = None,
    query_offset: int = 0,
) -> Float[Tensor, "batch heads q_length value_dim"]:
    """Attend to the keys that a plan allows, each with its own weight.

    ``out[i] = sum_j sigmoid(s[i, j]) v[j]`` over the allowed ``j``, where
    ``s[i, j] = scale * q[i] . k[j] + shift[i] + bias[i, j] - slopes * |i + query_offset - j|``.

    Args:
        q: Queries, float32; no size of any tensor is 0.
        k: Keys, float32; their number of heads divides that of the queries.
        v: Values, float32.
        plan: Which keys each query attends to.
        scale: What products are multiplied by.
        shift: Added to all scores of a query; sizes of 1 broadcast.
        bias: Added to the scores; sizes of 1 broadcast. A bias below -6e29 forbids its pair, as -inf does.
        slopes: What each head's scores lose for each step of distance; may differ by sequence.
        query_offset: Position of the first query among the keys.

    Returns:
        The outputs, zeros for queries without keys.
    """
    from gatework.ops.attention.kernels import call

    options = call.ScoreOptions(scale, None, bias, slopes, query_offset)
    return call.run_sigmoid_forward(q, k, v, plan, options, shift)


def sigmoid_backward(
    grad_out: Float[Tensor, "batch heads q_length value_dim"],
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    plan: Plan,
    *,
    scale: float,
    shift: Float[Tensor, "_batch _heads _queries"],
    needs_shift_grad: bool,
    bias: Float[Tensor, "_batch2 _heads2 q_length kv_length"] | None = None,
    slopes: Float[Tensor, "... heads"] | None = None,
    query_offset: int = 0,
) -> tuple[
    Float[Tensor, "batch heads q_length head_dim"],
    Float[Tensor, "batch kv_heads kv_length head_dim"],
    Float[Tensor, "batch kv_heads kv_length value_dim"],
    Float[Tensor, "batch heads q_length"] | None,
]:
    """Differentiate :func:`sigmoid_forward`: ``p = sigmoid(s)``, ``ds = p * (1 - p) * (grad_out @ v.T)``.

    The same number of threads gives the same bits, as for :func:`backward`.

    Args:
        grad_out: Gradient of the outputs.
        q: Queries of the forward pass, float32.
        k: Keys, float32.
        v: Values, float32.
        plan: Which keys each query attends to.
        scale: What products are multiplied by.
        shift: Added to all scores of a query; sizes of 1 broadcast.
        needs_shift_grad: Whether the gradient of ``shift`` is wanted.
        bias: Added to the scores; gets no gradient.
        slopes: What each head's scores lose for each step of distance; get no gradient.
        query_offset: Position of the first query among the keys.

    Returns:
        The gradients of queries, keys and values, and of the shift for each row, the sum of its ``ds``.
    """
    from gatework.ops.attention.kernels import call

    options = call.ScoreOptions(scale, None, bias, slopes, query_offset)
    return call.run_sigmoid_backward(
        grad_out, q, k, v, plan, options, shift, needs_shift_grad=needs_shift_grad
    )
