"""The recurrences in chunks: pairwise scores within one, and only the state between one and the next.

Every form comes down to ``output = within + read S`` and ``S <- transition S + update``, with ``S`` the state
before a chunk. Without corrections the transition is the decay over the chunk. With them, what each token of
a chunk writes depends on what the earlier ones wrote; this triangular system is solved per chunk (the WY form
of products of Householder-like matrices) for ``writes = Y + W S``, linear in the state before the chunk.
Sources: arXiv:2312.06635 (section 4), arXiv:2406.06484 (section 3), arXiv:2412.06464 (section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gatework.ops.recurrence.linear_recurrence.chunks import chunk_recurrence, chunk_states, split_chunks
from gatework.ops.recurrence.linear_recurrence.decay import decayed_scores

#: Tokens computed at a time where no gradient is recorded: what is held meanwhile stays in memory that the
#: process has already, and in part in the cache (measured from 1k to 32k tokens).
_SEGMENT = 4096


def in_segments(
    form: Callable[..., tuple[Tensor, Tensor]], tensors: Sequence[Tensor | None], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Call ``form(*tensors, state)``, for long sequences in parts: (batch, heads, length, ...)."""
    known = [tensor for tensor in tensors if tensor is not None]
    length = known[0].shape[2]
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*known, state))
    if learns or length <= _SEGMENT or torch.compiler.is_compiling():
        return form(*tensors, state)
    outputs = []
    for start in range(0, length, _SEGMENT):
        part = slice(start, start + _SEGMENT)
        output, state = form(*(x if x is None else x[:, :, part] for x in tensors), state)
        outputs.append(output)
    return torch.cat(outputs, 2), state


def gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    bonus: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """No correction: :func:`~gatework.ops.recurrence.linear_recurrence.gated_linear_attention`, scaled."""
    (q, k, values), log_decay = _split([q, k, v], log_decay, size)
    [[scores]], [read], [key], whole = decayed_scores(
        [q], ["after" if bonus is None else "before"], [k], log_decay
    )
    if bonus is not None:
        scores = scores + torch.diag_embed((q * bonus[:, None, None] * k).sum(-1))
    outputs, state = chunk_recurrence(scores @ values, read, key, values, whole, state)
    return _joined(outputs, v, size), state


def delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, *, size: int
) -> tuple[Tensor, Tensor]:
    """The delta rule; see :func:`gatework.ops.recurrence.linear_recurrence.delta_rule`, ``q`` scaled."""
    (q, k, values, beta), log_decay = _split([q, k, v, beta.unsqueeze(-1)], log_decay, size)
    [[scores], [overlaps]], [read, seen], [key], whole = decayed_scores(
        [q, k], ["after", "decayed"], [k], log_decay
    )
    # Written are u_t = beta_t (v_t - S'^T k_t), where S' holds what earlier tokens of the chunk wrote.
    solve = torch.linalg.solve_triangular(
        beta * overlaps, torch.diag_embed(beta.squeeze(-1)), upper=False, unitriangular=True
    )
    own, taken = solve @ values, solve @ seen
    transition = _diagonal(whole, q) - key.mT @ taken
    before, state = chunk_states(transition, key.mT @ own, state)
    return _joined(scores @ own + (read - scores @ taken) @ before, v, size), state


def low_rank(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    *,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Rank one; see :func:`gatework.ops.recurrence.linear_recurrence.low_rank_recurrence`, ``q`` scaled."""
    (q, k, values, a, b), log_decay = _split([q, k, v, a, b], log_decay, size)
    [[qk, qb], [ak, ab]], [read, seen], [key, write], whole = decayed_scores(
        [q, a], ["after", "before"], [k, b], log_decay
    )
    # Moved along b are z_t = S_{t-1}^T a_t, where S_{t-1} holds what earlier tokens of the chunk moved.
    solve = torch.linalg.solve_triangular(
        -ab, torch.eye(ab.shape[-1], dtype=ab.dtype, device=ab.device), upper=False, unitriangular=True
    )
    own, moved = solve @ (ak @ values), solve @ seen
    transition = _diagonal(whole, q) + write.mT @ moved
    before, state = chunk_states(transition, key.mT @ values + write.mT @ own, state)
    return _joined(qk @ values + qb @ own + (read + qb @ moved) @ before, v, size), state


def _split(tensors: list[Tensor], log_decay: Tensor | None, size: int) -> tuple[list[Tensor], Tensor | None]:
    """Cut into chunks; with a decay, fill chunks up to a power of two tokens, as halving wants them."""
    if log_decay is None:
        return [split_chunks(tensor, size) for tensor in tensors], None
    chunks = [
        split_chunks(tensor, size)
        for tensor in (*tensors, log_decay if log_decay.ndim == 4 else log_decay.unsqueeze(-1))
    ]
    size = chunks[0].shape[3]
    missing = (1 << (size - 1).bit_length()) - size
    *chunks, log_decay = (F.pad(chunk, (0, 0, 0, missing)) for chunk in chunks) if missing else chunks
    return chunks, log_decay


def _joined(outputs: Tensor, like: Tensor, size: int) -> Tensor:
    """Undo :func:`_split` for the outputs of a sequence as long as ``like``."""
    length = like.shape[2]
    return outputs[:, :, :, : min(size, length)].flatten(2, 3)[:, :, :length]


def _diagonal(whole: Tensor | None, q: Tensor) -> Tensor:
    """The decay over a chunk as a matrix."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return identity if whole is None else identity * whole.unsqueeze(-1)
