"""Linear attention with a decaying matrix state, in chunks: linear time, any decay, no overflow.

One routine serves the linear-recurrent family: no decay (linear attention), one decay per head
(RetNet, Mamba-2) and one per key channel (gated linear attention). Every exponential taken here has
an exponent of at most zero, so that strong decay underflows to the right limit instead of overflowing.
Sources: arXiv:2312.06635 (section 4, chunkwise form), arXiv:2405.21060 (section 6).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

#: Tokens per chunk: within one, scores are formed pairwise; between chunks only the state travels.
_CHUNK = 64
#: Smallest block of a chunk: below it, one decay per pair and channel is cheaper than more halving.
_BLOCK = 4

_Decay = Float[Tensor, "batch heads length"] | Float[Tensor, "batch heads length key_dim"] | None


def gated_linear_attention_reference(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: _Decay = None,
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """The definition: ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` and ``o_t = scale * S_t^T q_t``."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = _initial(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        if log_decay is not None:
            decay = log_decay[:, :, t].exp()
            state = state * (decay[..., None, None] if log_decay.ndim == 3 else decay[..., None])
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return (torch.stack(outputs, 2) if outputs else torch.zeros_like(v)), state


def gated_linear_attention(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: _Decay = None,
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """Linear attention with decay, in O(length) time and memory.

    Computes what :func:`gated_linear_attention_reference` defines: within a chunk of 64 tokens by
    pairwise scores, between chunks by the state.

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys.
        v: Values.
        log_decay: Logarithm of the factor that the state is multiplied by before token ``t`` is added:
            per head, per head and key channel, or ``None`` for no decay. At most zero.
        scale: Factor on the outputs, ``key_dim ** -0.5`` by default.
        initial_state: State before the first token, zero by default.

    Returns:
        The outputs in the dtype of ``v``, and the state after the last token in the dtype it was
        computed in (at least float32).

    Raises:
        ValueError: If the shapes do not match; the message names the argument.
    """
    _check_shapes(q, k, v, log_decay, initial_state)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    state = _initial(q, v, dtype) if initial_state is None else initial_state.to(dtype)
    if q.shape[2] == 0 or v.numel() == 0 or q.numel() == 0:
        return v * 0, state  # empty, and part of the graph
    with torch.autocast(q.device.type, enabled=False):
        length = q.shape[2]
        q, k, values = (split_chunks(tensor.to(dtype), _CHUNK) for tensor in (q * scale, k, v))
        if log_decay is None:
            scores = (q @ k.mT).tril()
            outputs, state = chunk_recurrence(scores @ values, q, k, values, None, state)
        elif log_decay.ndim == 3:
            outputs, state = _per_head(
                q, k, values, split_chunks(log_decay.to(dtype)[..., None], _CHUNK), state
            )
        else:
            outputs, state = _per_channel(q, k, values, split_chunks(log_decay.to(dtype), _CHUNK), state)
    return outputs.flatten(2, 3)[:, :, :length].to(v.dtype), state


def split_chunks(
    tensor: Float[Tensor, "batch heads length dim"], size: int
) -> Float[Tensor, "batch heads chunks size dim"]:
    """Cut a sequence into chunks of ``size`` tokens, the last one filled up with zeros.

    Zero keys and values add nothing to the state, and a zero log-decay keeps it, so the padding is exact.
    """
    size = min(size, tensor.shape[2])
    padded = F.pad(tensor, (0, 0, 0, -tensor.shape[2] % size))
    chunks: Tensor = padded.unflatten(2, (padded.shape[2] // size, size))
    return chunks


def chunk_recurrence(
    within: Float[Tensor, "batch heads chunks size value_dim"],
    q: Float[Tensor, "batch heads chunks size features"],
    k: Float[Tensor, "batch heads chunks size features"],
    v: Float[Tensor, "batch heads chunks size value_dim"],
    decay: Float[Tensor, "batch heads chunks #features"] | None,
    state: Float[Tensor, "batch heads features value_dim"],
) -> tuple[
    Float[Tensor, "batch heads chunks size value_dim"], Float[Tensor, "batch heads features value_dim"]
]:
    """Add to the outputs ``within`` each chunk what the chunks before it contribute through the state.

    With ``S`` the state before a chunk: ``output = within + q S`` and ``S <- decay * S + k^T v``.

    Args:
        within: Outputs due to tokens of the same chunk.
        q: Queries, decayed from the start of their chunk.
        k: Keys, decayed to the end of their chunk.
        v: Values.
        decay: Factor over a whole chunk, per feature or one for all; ``None`` for no decay.
        state: State before the first chunk.

    Returns:
        The outputs and the state after the last chunk.
    """
    before = []
    for chunk, update in enumerate((k.mT @ v).unbind(2)):
        before.append(state)
        state = (state if decay is None else decay[:, :, chunk, :, None] * state) + update
    return within + q @ torch.stack(before, 2), state


def gated_linear_attention_step(
    q: Float[Tensor, "batch heads key_dim"],
    k: Float[Tensor, "batch heads key_dim"],
    v: Float[Tensor, "batch heads value_dim"],
    log_decay: Float[Tensor, "batch heads"] | Float[Tensor, "batch heads key_dim"] | None,
    state: Float[Tensor, "batch heads key_dim value_dim"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """One token of :func:`gated_linear_attention_reference`: its output, and the state after it."""
    q, k, v = (tensor.unsqueeze(2).to(state.dtype) for tensor in (q, k, v))
    decay = None if log_decay is None else log_decay.unsqueeze(2).to(state.dtype)
    output, state = gated_linear_attention_reference(q, k, v, decay, scale=scale, initial_state=state)
    return output.squeeze(2), state


def _per_head(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One decay per head: scores are damped by ``exp(c_i - c_j)`` with ``c`` the running log-decay."""
    running = log_decay.cumsum(3)
    future = torch.ones(q.shape[3], q.shape[3], dtype=torch.bool, device=q.device).triu(1)
    damping = (running - running.mT).masked_fill(future, -torch.inf).exp()
    end = running[:, :, :, -1:]
    return chunk_recurrence(
        (q @ k.mT * damping) @ v, q * running.exp(), k * (end - running).exp(), v, end.squeeze(3).exp(), state
    )


def _per_channel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One decay per key channel: queries and keys are decayed to and from a point that lies between them."""
    # Blocks are halved down to _BLOCK, so chunks of few tokens are filled up to a power of two times it.
    size = q.shape[3]
    whole = _BLOCK
    while whole < size:
        whole *= 2
    q, k, v, log_decay = (F.pad(tensor, (0, 0, 0, whole - size)) for tensor in (q, k, v, log_decay))
    running = log_decay.cumsum(3)
    within = _smallest_blocks(q, k, v, running)
    half = _BLOCK
    while half < whole:
        within = within + _later_half_sees_earlier(q, k, v, running, half)
        half *= 2
    end = running[:, :, :, -1:]
    outputs, state = chunk_recurrence(
        within, q * running.exp(), k * (end - running).exp(), v, end.squeeze(3).exp(), state
    )
    return outputs[:, :, :, :size], state


def _smallest_blocks(q: Tensor, k: Tensor, v: Tensor, running: Tensor) -> Tensor:
    """Outputs due to the same block of ``_BLOCK`` tokens, with one decay for every pair and channel."""
    blocks = q.shape[3] // _BLOCK
    q, k, v, running = (tensor.unflatten(3, (blocks, _BLOCK)) for tensor in (q, k, v, running))
    future = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device=q.device).triu(1)[..., None]
    damping = (running.unsqueeze(-2) - running.unsqueeze(-3)).masked_fill(future, -torch.inf).exp()
    scores = (q.unsqueeze(-2) * k.unsqueeze(-3) * damping).sum(-1)
    return (scores @ v).flatten(3, 4)


def _later_half_sees_earlier(q: Tensor, k: Tensor, v: Tensor, running: Tensor, half: int) -> Tensor:
    """Outputs of the later half of every block of ``2 * half`` tokens due to its earlier half.

    Relative to the last token of the earlier half, queries decay forward and keys decay towards it:
    both factors are at most one, and their product is the decay of the pair.
    """
    shape = (q.shape[3] // (2 * half), 2, half)
    q, k, v, running = (tensor.unflatten(3, shape) for tensor in (q, k, v, running))
    middle = running[:, :, :, :, 0, -1:]
    queries = q[:, :, :, :, 1] * (running[:, :, :, :, 1] - middle).exp()
    keys = k[:, :, :, :, 0] * (middle - running[:, :, :, :, 0]).exp()
    later = queries @ keys.mT @ v[:, :, :, :, 0]
    return F.pad(later.unsqueeze(4), (0, 0, 0, 0, 1, 0)).flatten(3, 5)


def _initial(q: Tensor, v: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    shape = (*q.shape[:2], q.shape[-1], v.shape[-1])
    return torch.zeros(shape, dtype=dtype or q.dtype, device=q.device)


def _check_shapes(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial_state: Tensor | None
) -> None:
    if q.ndim != 4 or k.shape != q.shape:
        raise ValueError(
            f"k must have the shape of q, (batch, heads, length, key_dim)={tuple(q.shape)}, "
            f"got {tuple(k.shape)}"
        )
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must have shape (batch, heads, length, value_dim) with the first three of q, "
            f"{tuple(q.shape[:3])}, got {tuple(v.shape)}"
        )
    if log_decay is not None and log_decay.shape not in (q.shape, q.shape[:3]):
        raise ValueError(
            f"log_decay must have shape {tuple(q.shape[:3])} (one per head) or {tuple(q.shape)} "
            f"(one per key channel), got {tuple(log_decay.shape)}"
        )
    state_shape = (*q.shape[:2], q.shape[3], v.shape[3])
    if initial_state is not None and initial_state.shape != state_shape:
        raise ValueError(f"initial_state must have shape {state_shape}, got {tuple(initial_state.shape)}")
