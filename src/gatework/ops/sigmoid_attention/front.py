"""The front door of sigmoid attention: checks the arguments, chooses an engine, runs it."""

from __future__ import annotations

import math
import operator

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_int, check_number, check_probability
from gatework.masks import Causal, Mask
from gatework.ops.attention.checks import check_broadcasts, check_mask, check_tensors, score_shape
from gatework.ops.attention.reference import AllowedPairs
from gatework.ops.engines import checked_engine, may_be_chosen
from gatework.ops.sigmoid_attention import blocked, dense, flash
from gatework.ops.sigmoid_attention.options import SigmoidEngine, SigmoidOptions

#: Below so many pairs of queries and keys the planning of tiles does not pay.
_FEWEST_PAIRS = 1 << 14

_CAUSAL = Causal()
_Bias = Float[Tensor, "..."] | float


def _nothing(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> None:
    """Refuse nothing."""


#: Every way to compute sigmoid attention, by the name that ``engine=`` takes.
ENGINES = {
    "reference": SigmoidEngine(dense.by_definition, _nothing),
    "dense": SigmoidEngine(dense.dense, _nothing),
    "blocked": SigmoidEngine(blocked.blocked, blocked.refusal),
    "blocked-torch": SigmoidEngine(blocked.blocked_torch, blocked.refusal),
    "blocked-numba": SigmoidEngine(blocked.blocked_numba, blocked.numba_refusal),
    "triton": SigmoidEngine(flash.flash, flash.refusal),
}


def sigmoid_attention(
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    *,
    bias: _Bias | None = None,
    is_causal: bool = False,
    mask: Mask | AllowedPairs | None = None,
    alibi_slopes: Float[Tensor, "*_batch heads"] | None = None,
    scale: float | None = None,
    query_offset: int | None = None,
    dropout_p: float = 0.0,
    engine: str | None = None,
) -> Float[Tensor, "batch heads q_length value_dim"]:
    """Sigmoid attention: ``o_i = sum_j sigmoid(scale * q_i . k_j + bias_ij) v_j`` over the allowed ``j``.

    Computes what :func:`sigmoid_attention_reference` defines (arXiv:2409.04431, section 2). Weights are not
    normalised: keys do not compete, a query that is allowed nothing gets zeros, and the results for parts of
    the keys add up to that for all of them, given the same bias.

    Args:
        q: Queries.
        k: Keys; their heads may divide those of ``q``: query head ``h`` uses ``h // (heads // kv_heads)``.
        v: Values, of any ``value_dim``.
        bias: Added to the scores: a number, or a tensor that broadcasts to ``(batch, heads, q_length,
            kv_length)`` and may be trained. By default ``-log(kv_length)``, with which weights begin as large
            as those of a softmax (section 3.1); in a model give it for a configured length, since the default
            changes with every key that a cache takes up.
        is_causal: Whether queries see only keys that are not after them, beside what ``mask`` says.
        mask: Which pairs are allowed: a :class:`~gatework.masks.Mask`, or booleans that broadcast to the
            shape above, True where allowed. A Mask counts positions of queries and keys from 0, whatever
            ``query_offset`` is; in decoding give it the queries' ``with_query_offset``.
        alibi_slopes: Of each query head, or of each sequence and query head: ``slope * |i + query_offset -
            j|`` is subtracted from the scores (arXiv:2108.12409). A sigmoid changes if the same number is
            added to a row, so the whole distance counts.
        scale: Factor on the products, ``head_dim ** -0.5`` by default.
        query_offset: Position of the first query for ``is_causal`` and ``alibi_slopes``, where keys are
            counted from 0; ``kv_length - q_length`` by default: the queries are the last positions.
        dropout_p: Probability of dropping a weight; applied whenever it is not 0.
        engine: ``"reference"`` (the definition), ``"dense"`` (all pairs, float32 at least), ``"blocked"``
            (only the tiles that a Mask needs, on a CPU, in linear memory; ``"blocked-torch"`` with PyTorch's
            operators, ``"blocked-numba"`` with compiled kernels, which it chooses between) or ``"triton"``
            (FlashSigmoid, on CUDA); by default the fastest that can do what is asked and has been tried on
            the device: never ``"triton"`` until :data:`gatework.ops.engines.TRIED` says so.

    Raises:
        ValueError: If shapes, dtypes or ranges do not fit, or ``engine`` cannot do what is asked.
        TypeError: If the type of ``mask``, ``bias``, ``alibi_slopes`` or ``query_offset`` is another.
    """
    check_tensors(q, k, v)
    check_mask(mask, q, k)
    check_probability("dropout_p", dropout_p)
    offset = k.shape[2] - q.shape[2] if query_offset is None else check_int("query_offset", query_offset)
    scale = q.shape[-1] ** -0.5 if scale is None else float(check_number("scale", scale))
    allowed = _with_causal(mask, q, k, offset) if is_causal else mask
    biases, slopes = _biases(bias, q, k), _slopes(alibi_slopes, q)
    options = SigmoidOptions(allowed, *biases, slopes, offset, scale, dropout_p)
    return _chosen(engine, q, k, v, options).run(q, k, v, options)


def _chosen(name: str | None, q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> SigmoidEngine:
    """The engine of that name, or the fastest one that can do what is asked."""
    name = checked_engine(name, ENGINES)
    if name is None:
        return ENGINES[_fastest(q, k, v, options)]
    refusal = ENGINES[name].refusal(q, k, v, options)
    if refusal is not None:
        raise ValueError(f"engine {name!r} {refusal}")
    return ENGINES[name]


def _fastest(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> str:
    """The name of the fastest engine that can do what is asked."""
    on_gpu = q.device.type == "cuda" and may_be_chosen("sigmoid_attention", "triton", q.device)
    if on_gpu and flash.refusal(q, k, v, options) is None:
        return "triton"
    small = q.shape[2] * k.shape[2] < _FEWEST_PAIRS
    return "dense" if small or blocked.refusal(q, k, v, options) is not None else "blocked"


def _biases(bias: Tensor | float | None, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is the same for all keys, ``(batch or 1, heads or 1, q_length or 1)``, and what is not."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if bias is None:
        bias = -math.log(k.shape[2]) if k.shape[2] else 0.0
    if not isinstance(bias, Tensor):
        check_number("bias", bias)
        return torch.full((1, 1, 1), bias, dtype=dtype, device=q.device), None
    if not bias.is_floating_point():
        raise TypeError(f"bias must be floating point, got {bias.dtype}")
    check_broadcasts("bias", bias, score_shape(q, k))
    bias = bias[(None,) * (4 - bias.ndim)]
    if bias.shape[3] == 1:
        return bias[..., 0].to(dtype), None
    return torch.zeros(1, 1, 1, dtype=dtype, device=q.device), bias


def _slopes(slopes: Tensor | None, q: Tensor) -> Tensor | None:
    if slopes is None:
        return None
    if not isinstance(slopes, Tensor) or not slopes.is_floating_point():
        found = slopes.dtype if isinstance(slopes, Tensor) else repr(slopes)
        raise TypeError(f"alibi_slopes must be a floating point tensor, got {found}")
    if slopes.shape not in (q.shape[1:2], (1, q.shape[1]), q.shape[:2]):
        raise ValueError(
            f"alibi_slopes must have shape (heads={q.shape[1]},) or (batch={q.shape[0]}, heads), "
            f"got {tuple(slopes.shape)}"
        )
    return slopes if slopes.ndim == 2 else slopes[None]


def _with_causal(mask: Mask | Tensor | None, q: Tensor, k: Tensor, offset: int) -> Mask | Tensor | None:
    """The mask, and that no key is after its query."""
    if offset >= k.shape[2] - 1:
        return mask  # no key is after the first query: steps of decoding need no plan each
    causal = _CAUSAL.with_query_offset(operator.index(offset))  # a constant, as plans are
    if isinstance(mask, Tensor):
        return mask & causal.to_dense(q.shape[2], k.shape[2], device=q.device)
    return causal if mask is None else mask & causal
