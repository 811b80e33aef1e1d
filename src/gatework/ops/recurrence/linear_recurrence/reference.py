"""The definitions: a matrix state that forgets, corrects itself and learns, token by token.

Each function here is a loop over tokens in the precision of its inputs, short enough to be obviously right.
Sources: arXiv:2312.06635 (gated linear attention), arXiv:2404.05892 (RWKV-5: the bonus), arXiv:2102.11174 and
arXiv:2412.06464 (delta rule, gated), arXiv:2503.14456 (RWKV-7: diagonal plus low rank).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.ops.recurrence.linear_recurrence.checks import Decay, StepDecay, zero_state


def gated_linear_attention_reference(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: Decay = None,
    *,
    bonus: Float[Tensor, "heads key_dim"] | None = None,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """The definition: ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` and ``o_t = scale * S_t^T q_t``.

    With a ``bonus`` ``u`` the state is read before the token is added, and the token itself enters with a
    weight of its own: ``o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = zero_state(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        added = k[:, :, t, :, None] * v[:, :, t, None, :]
        seen = None if bonus is None else state + bonus[:, :, None] * added
        state = _decayed(state, log_decay, t) + added
        outputs.append(_read(state if seen is None else seen, q[:, :, t], scale))
    return _stacked(outputs, v), state


def delta_rule_reference(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    beta: Float[Tensor, "batch heads length"],
    log_decay: Decay = None,
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """The definition: what the decayed state answers to a key moves towards the value by ``beta``.

    ``S' = diag(exp(g_t)) S_{t-1}``, ``S_t = S' + beta_t k_t (v_t - S'^T k_t)^T``; outputs
    ``o_t = scale * S_t^T q_t``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = zero_state(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        state = _decayed(state, log_decay, t)
        error = v[:, :, t] - _read(state, k[:, :, t])
        state = state + k[:, :, t, :, None] * (beta[:, :, t, None] * error)[:, :, None, :]
        outputs.append(_read(state, q[:, :, t], scale))
    return _stacked(outputs, v), state


def low_rank_recurrence_reference(
    q: Float[Tensor, "batch heads length key_dim"],
    k: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    log_decay: Decay,
    a: Float[Tensor, "batch heads length key_dim"],
    b: Float[Tensor, "batch heads length key_dim"],
    *,
    scale: float | None = None,
    initial_state: Float[Tensor, "batch heads key_dim value_dim"] | None = None,
) -> tuple[Float[Tensor, "batch heads length value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """The definition: a token reads the state along ``a``, and what it reads is added along ``b``.

    ``S_t = (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``, ``o_t = scale * S_t^T q_t``.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = zero_state(q, v) if initial_state is None else initial_state
    outputs = []
    for t in range(q.shape[2]):
        moved = b[:, :, t, :, None] * _read(state, a[:, :, t])[:, :, None, :]
        state = _decayed(state, log_decay, t) + moved + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(_read(state, q[:, :, t], scale))
    return _stacked(outputs, v), state


def gated_linear_attention_step(
    q: Float[Tensor, "batch heads key_dim"],
    k: Float[Tensor, "batch heads key_dim"],
    v: Float[Tensor, "batch heads value_dim"],
    log_decay: StepDecay,
    state: Float[Tensor, "batch heads key_dim value_dim"],
    *,
    bonus: Float[Tensor, "heads key_dim"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """One token of :func:`gated_linear_attention_reference`: its output, and the state after it."""
    queries, keys, values, decay = _one_token(state, q, k, v, log_decay)
    weight = None if bonus is None else bonus.to(state.dtype)
    with torch.autocast(q.device.type, enabled=False):
        output, state = gated_linear_attention_reference(
            queries, keys, values, decay, bonus=weight, scale=scale, initial_state=state
        )
    return output.squeeze(2), state


def delta_rule_step(
    q: Float[Tensor, "batch heads key_dim"],
    k: Float[Tensor, "batch heads key_dim"],
    v: Float[Tensor, "batch heads value_dim"],
    beta: Float[Tensor, "batch heads"],
    log_decay: StepDecay,
    state: Float[Tensor, "batch heads key_dim value_dim"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """One token of :func:`delta_rule_reference`: its output, and the state after it."""
    queries, keys, values, decay = _one_token(state, q, k, v, log_decay)
    strength = beta.unsqueeze(2).to(state.dtype)
    with torch.autocast(q.device.type, enabled=False):
        output, state = delta_rule_reference(
            queries, keys, values, strength, decay, scale=scale, initial_state=state
        )
    return output.squeeze(2), state


def low_rank_recurrence_step(
    q: Float[Tensor, "batch heads key_dim"],
    k: Float[Tensor, "batch heads key_dim"],
    v: Float[Tensor, "batch heads value_dim"],
    log_decay: StepDecay,
    a: Float[Tensor, "batch heads key_dim"],
    b: Float[Tensor, "batch heads key_dim"],
    state: Float[Tensor, "batch heads key_dim value_dim"],
    *,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], Float[Tensor, "batch heads key_dim value_dim"]]:
    """One token of :func:`low_rank_recurrence_reference`: its output, and the state after it."""
    queries, keys, values, decay = _one_token(state, q, k, v, log_decay)
    reads, writes = (tensor.unsqueeze(2).to(state.dtype) for tensor in (a, b))
    with torch.autocast(q.device.type, enabled=False):
        output, state = low_rank_recurrence_reference(
            queries, keys, values, decay, reads, writes, scale=scale, initial_state=state
        )
    return output.squeeze(2), state


def _one_token(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A sequence of one token in the precision of the state."""
    queries, keys, values = (tensor.unsqueeze(2).to(state.dtype) for tensor in (q, k, v))
    return queries, keys, values, None if log_decay is None else log_decay.unsqueeze(2).to(state.dtype)


def _decayed(state: Tensor, log_decay: Tensor | None, t: int) -> Tensor:
    if log_decay is None:
        return state
    decay = log_decay[:, :, t].exp()
    return state * (decay[..., None, None] if log_decay.ndim == 3 else decay[..., None])


def _read(state: Tensor, vector: Tensor, scale: float = 1.0) -> Tensor:
    return scale * torch.einsum("bhk,bhkv->bhv", vector, state)


def _stacked(outputs: list[Tensor], v: Tensor) -> Tensor:
    return torch.stack(outputs, 2) if outputs else torch.zeros_like(v)
