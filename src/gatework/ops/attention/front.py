"""The front door of attention: checks the arguments, chooses an engine, runs it."""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_number, check_positive, check_probability, check_shape
from gatework.masks import Mask
from gatework.ops.attention import blocked, choice, dense, flex
from gatework.ops.attention.checks import check_broadcasts, check_mask, check_tensors, score_shape
from gatework.ops.attention.options import Alibi, Engine, Options, Result
from gatework.ops.attention.reference import AllowedPairs, attention_reference
from gatework.ops.engines import checked_engine


def _reference(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    arguments = options._asdict()
    return_lse = arguments.pop("return_lse")
    y, lse = attention_reference(q, k, v, **arguments)
    return y, lse if return_lse else None


#: Every way to compute attention, by the name that ``engine=`` takes.
ENGINES = {
    "reference": Engine(_reference),
    "dense": Engine(dense.dense),
    "blocked": Engine(blocked.blocked, blocked.refusal),
    "blocked-torch": Engine(blocked.blocked_torch, blocked.refusal),
    "blocked-numba": Engine(blocked.blocked_numba, blocked.numba_refusal),
    "flex": Engine(flex.flex, flex.refusal),
}

_Queries = Float[Tensor, "batch heads q_length head_dim"]
_Keys = Float[Tensor, "batch kv_heads kv_length head_dim"]
_Values = Float[Tensor, "batch kv_heads kv_length value_dim"]
_Outputs = Float[Tensor, "batch heads q_length value_dim"]
_Bias = Float[Tensor, "..."] | Alibi
_LogSumExp = Float[Tensor, "batch heads q_length"]


@overload
def attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    *,
    mask: Mask | AllowedPairs | None = ...,
    bias: _Bias | None = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Float[Tensor, " heads"] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[False] = ...,
    engine: str | None = ...,
) -> _Outputs: ...


@overload
def attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    *,
    mask: Mask | AllowedPairs | None = ...,
    bias: _Bias | None = ...,
    scale: float | None = ...,
    softcap: float | None = ...,
    sinks: Float[Tensor, " heads"] | None = ...,
    dropout_p: float = ...,
    return_lse: Literal[True],
    engine: str | None = ...,
) -> tuple[_Outputs, _LogSumExp]: ...


def attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    *,
    mask: Mask | AllowedPairs | None = None,
    bias: _Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    engine: str | None = None,
) -> _Outputs | tuple[_Outputs, _LogSumExp]:
    """Softmax attention: ``o_i = sum_j softmax_j(scale * q_i . k_j + bias_ij) v_j`` over the allowed ``j``.

    Computes what :func:`attention_reference` defines (arXiv:1706.03762, section 3.2.1). A query that is
    allowed nothing gets zeros.

    Args:
        q: Queries.
        k: Keys; their heads may divide those of ``q``: query head ``h`` uses ``h // (heads // kv_heads)``.
        v: Values, of any ``value_dim``.
        mask: Which pairs are allowed: a :class:`~gatework.masks.Mask`, or booleans that broadcast to
            ``(batch, heads, q_length, kv_length)``, True where allowed. A Mask counts positions of queries
            and keys from 0; in decoding give it the queries' ``with_query_offset``.
        bias: Added to the scores: a tensor that broadcasts to the same shape, or an
            :class:`~gatework.ops.Alibi`.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        softcap: Bounds the scaled scores by ``softcap * tanh(score / softcap)``, before bias and mask
            (arXiv:2408.00118, section 2).
        sinks: One logit per query head that takes part in the softmax and has no value
            (arXiv:2309.17453; as in gpt-oss).
        dropout_p: Probability of dropping a weight after the softmax; applied whenever it is not 0.
        return_lse: Also return the logarithm of the softmax's denominator, sinks included; ``-inf`` where
            nothing is allowed and there is no sink.
        engine: ``"reference"`` (the definition), ``"dense"`` (all pairs, by PyTorch's fused kernels),
            ``"blocked"`` (only the tiles that a Mask needs, on a CPU; ``"blocked-torch"`` with PyTorch's
            operators and ``"blocked-numba"`` with compiled kernels, which it chooses between) or ``"flex"``
            (compiled FlexAttention); by default the fastest that can do what is asked and has been tried on
            the device: never ``"flex"`` until :data:`gatework.ops.engines.TRIED` says so.

    Raises:
        ValueError: If shapes, dtypes or ranges do not fit, or ``engine`` cannot do what is asked.
        TypeError: If ``mask`` is neither a Mask nor boolean, or ``bias`` is not floating point.
    """
    check_tensors(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else float(check_number("scale", scale))
    options = Options(mask, bias, scale, softcap, sinks, dropout_p, return_lse)
    _check_options(q, k, options)
    y, lse = _engine(engine, q, k, v, options).run(q, k, v, options)
    return y if lse is None else (y, lse)


def _engine(name: str | None, q: Tensor, k: Tensor, v: Tensor, options: Options) -> Engine:
    """The engine of that name, or the fastest one that can do what is asked."""
    name = checked_engine(name, ENGINES)
    if name is None:
        return ENGINES[choice.fastest(q, k, v, options)]
    refusal = ENGINES[name].refusal(q, k, v, options)
    if refusal is not None:
        raise ValueError(f"engine {name!r} {refusal}")
    return ENGINES[name]


def _check_options(q: Tensor, k: Tensor, options: Options) -> None:
    check_mask(options.mask, q, k)
    if isinstance(options.bias, Alibi):
        if len(options.bias.slopes) != q.shape[1]:
            raise ValueError(f"bias must have a slope per query head, {q.shape[1]}, got {options.bias}")
    elif options.bias is not None:
        if not options.bias.is_floating_point():
            raise TypeError(f"bias must be floating point, got {options.bias.dtype}")
        check_broadcasts("bias", options.bias, score_shape(q, k))
    if options.sinks is not None:
        check_shape("sinks", options.sinks, (q.shape[1],), "(heads,)")
    if options.softcap is not None:
        check_positive(softcap=options.softcap)
    check_probability("dropout_p", options.dropout_p)
