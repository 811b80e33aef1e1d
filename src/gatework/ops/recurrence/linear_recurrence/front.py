"""The public functions: what they compute, and which engine does it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_number, check_shape
from gatework.ops.engines import checked_engine
from gatework.ops.recurrence.linear_recurrence import chunked, engine_fla
from gatework.ops.recurrence.linear_recurrence.checks import (
    ENGINES,
    Decay,
    check_call,
    zero_state,
)
from gatework.ops.recurrence.linear_recurrence.reference import (
    delta_rule_reference,
    gated_linear_attention_reference,
    low_rank_recurrence_reference,
)

#: Tokens per chunk unless asked for (measured by benchmarks/linear_recurrence.py). Corrections solve a system
#: of as many unknowns, which prefers short chunks as long as the state is small.
_CHUNK_SIZE, _SHORT_CHUNK_SIZE, _SMALL_KEY_DIM = 64, 32, 64


def gated_linear_attention(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: Decay = None,
    *,
    bonus: Float[Tensor, "heads key_dim"] | None = None,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
    chunk_size: int | None = None,
    engine: str | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """Linear attention with decay, in O(length) time and memory.

    Computes what :func:`gated_linear_attention_reference` defines: within a chunk of tokens by pairwise
    scores, between chunks by the state (arXiv:2312.06635, section 4).

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys.
        v: Values.
        log_decay: Logarithm of the factor that the state is multiplied by before token ``t`` is added:
            per head, per head and key channel, or ``None`` for no decay. At most zero.
        bonus: Weight of a token's own key channels in its output, which then reads the state as it was before
            the token (RWKV-5, arXiv:2404.05892); ``None`` to read the state that holds the token.
        scale: Factor on the outputs, ``key_dim ** -0.5`` by default.
        initial_state: State before the first token, zero by default.
        chunk_size: Tokens per chunk; a measured default. Changes the speed, not the result.
        engine: ``"reference"`` (the definition, token by token), ``"chunked"`` (chunks, with PyTorch) or
            ``"fla"`` (the GPU kernels of flash-linear-attention); by default chunks, since fla was not yet
            tried on a GPU (:data:`gatework.ops.engines.TRIED`).

    Returns:
        The outputs in the dtype of ``v``, and the state after the last token in at least float32.

    Raises:
        ValueError: If shapes do not match, ``chunk_size`` is not positive, or ``engine`` is unknown or does
            not compute in the precision of the tensors.
        ImportError: If ``engine="fla"`` and flash-linear-attention is not installed.
    """
    engine = checked_engine(engine, ENGINES)
    check_call(q, k, v, log_decay, initial_state, chunk_size)
    if bonus is not None:
        check_shape("bonus", bonus, (q.shape[1], q.shape[3]), "(heads, key_dim)")
    scale = q.shape[-1] ** -0.5 if scale is None else check_number("scale", scale)
    queries, keys, values, state = _wide(q, k, v, initial_state)
    if values.numel() == 0 or queries.numel() == 0:
        return v * 0, state  # empty, and part of the graph
    if engine_fla.is_wanted(engine, "gated_linear_attention", q, v):
        return engine_fla.gated(q, k, v, log_decay, bonus, scale, initial_state)
    decay, weight = (None if x is None else x.to(state.dtype) for x in (log_decay, bonus))
    definition = partial(gated_linear_attention_reference, bonus=weight) if engine == "reference" else None
    form = partial(chunked.gated, bonus=weight, size=chunk_size or _CHUNK_SIZE)
    outputs, state = _compute(definition, form, (queries, keys, values, decay), scale, state)
    return outputs.to(v.dtype), state


def delta_rule(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    beta: Float[Tensor, "batch heads length"],
    log_decay: Decay = None,
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
    chunk_size: int | None = None,
    engine: str | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """A memory that moves what it answers to a key towards the value, in O(length) time and memory.

    Computes what :func:`delta_rule_reference` defines: within a chunk of tokens by a triangular system,
    between chunks by the state (arXiv:2406.06484, section 3; with decay arXiv:2412.06464).

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys, usually of length one: longer than ``sqrt(2 / beta)``, corrections overshoot and grow.
        v: Values.
        beta: How far the answer moves, per token and head: not at all for 0, all the way for 1.
        log_decay: As in :func:`gated_linear_attention`.
        scale: Factor on the outputs, ``key_dim ** -0.5`` by default.
        initial_state: State before the first token, zero by default.
        chunk_size: As in :func:`gated_linear_attention`.
        engine: As in :func:`gated_linear_attention`.

    Returns:
        The outputs in the dtype of ``v``, and the state after the last token in at least float32.

    Raises:
        ValueError: If shapes do not match, ``chunk_size`` is not positive, or ``engine`` is unknown or does
            not compute in the precision of the tensors.
        ImportError: If ``engine="fla"`` and flash-linear-attention is not installed.
    """
    engine = checked_engine(engine, ENGINES)
    check_call(q, k, v, log_decay, initial_state, chunk_size)
    check_shape("beta", beta, tuple(q.shape[:3]), "(batch, heads, length)")
    scale = q.shape[-1] ** -0.5 if scale is None else check_number("scale", scale)
    queries, keys, values, state = _wide(q, k, v, initial_state)
    if values.numel() == 0 or queries.numel() == 0:
        return v * 0, state  # empty, and part of the graph
    if engine_fla.is_wanted(engine, "delta_rule", q, v):
        return engine_fla.delta(q, k, v, beta, log_decay, scale, initial_state)
    decay, strength = None if log_decay is None else log_decay.to(state.dtype), beta.to(state.dtype)
    definition = delta_rule_reference if engine == "reference" else None
    form = partial(chunked.delta, size=chunk_size or _corrected_chunk_size(q))
    outputs, state = _compute(definition, form, (queries, keys, values, strength, decay), scale, state)
    return outputs.to(v.dtype), state


def low_rank_recurrence(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: Decay,
    a: Float[Tensor, "batch heads length key_dim"],
    b: Float[Tensor, "batch heads length key_dim"],
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
    chunk_size: int | None = None,
    engine: str | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """A state multiplied by a diagonal plus a matrix of rank one, in O(length) time and memory.

    Computes what :func:`low_rank_recurrence_reference` defines: within a chunk of tokens by a triangular
    system, between chunks by the state (RWKV-7, arXiv:2503.14456, with ``a = -kk``, ``b = kk * eta``).

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys.
        v: Values.
        log_decay: As in :func:`gated_linear_attention`.
        a: What reads the state before the token, and before its decay.
        b: Where what was read is added.
        scale: Factor on the outputs, ``key_dim ** -0.5`` by default.
        initial_state: State before the first token, zero by default.
        chunk_size: As in :func:`gated_linear_attention`.
        engine: As in :func:`gated_linear_attention`.

    Returns:
        The outputs in the dtype of ``v``, and the state after the last token in at least float32.

    Raises:
        ValueError: If shapes do not match, ``chunk_size`` is not positive, or ``engine`` is unknown or does
            not compute in the precision of the tensors.
        ImportError: If ``engine="fla"`` and flash-linear-attention is not installed.
    """
    engine = checked_engine(engine, ENGINES)
    check_call(q, k, v, log_decay, initial_state, chunk_size)
    for name, tensor in (("a", a), ("b", b)):
        check_shape(name, tensor, tuple(q.shape), "(batch, heads, length, key_dim)")
    scale = q.shape[-1] ** -0.5 if scale is None else check_number("scale", scale)
    queries, keys, values, state = _wide(q, k, v, initial_state)
    if values.numel() == 0 or queries.numel() == 0:
        return v * 0, state  # empty, and part of the graph
    if engine_fla.is_wanted(engine, "low_rank_recurrence", q, v):
        return engine_fla.low_rank(q, k, v, log_decay, a, b, scale, initial_state)
    decay = None if log_decay is None else log_decay.to(state.dtype)
    seen, added = a.to(state.dtype), b.to(state.dtype)
    definition = low_rank_recurrence_reference if engine == "reference" else None
    form = partial(chunked.low_rank, size=chunk_size or _corrected_chunk_size(q))
    outputs, state = _compute(definition, form, (queries, keys, values, decay, seen, added), scale, state)
    return outputs.to(v.dtype), state


def _wide(
    q: Tensor, k: Tensor, v: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and the first state in the precision to compute in, float32 or float64."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    state = zero_state(q, v, dtype) if initial_state is None else initial_state.to(dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype), state


def _compute(
    definition: Callable[..., tuple[Tensor, Tensor]] | None,
    form: Callable[..., tuple[Tensor, Tensor]],
    tensors: tuple[Tensor | None, ...],
    scale: float,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the definition if there is one, else the form in chunks; tensors begin with the queries."""
    queries, *others = tensors
    assert queries is not None
    with torch.autocast(queries.device.type, enabled=False):
        if definition is not None:
            return definition(queries, *others, scale=scale, initial_state=state)
        scaled = queries if scale == 1 else queries * scale
        return chunked.in_segments(form, (scaled, *others), state)


def _corrected_chunk_size(q: Tensor) -> int:
    return _SHORT_CHUNK_SIZE if q.shape[-1] <= _SMALL_KEY_DIM else _CHUNK_SIZE
