"""What a call of a linear recurrence must look like, said in the caller's terms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_shape, check_sizes

#: Logarithm of what the state is multiplied by: nothing, one number per head, or one per key channel.
Decay = Float[Tensor, "batch heads length"] | Float[Tensor, "batch heads length key_dim"] | None
#: The same for one token.
StepDecay = Float[Tensor, "batch heads"] | Float[Tensor, "batch heads key_dim"] | None

#: Ways to compute a recurrence: the definition, chunks in PyTorch, the GPU kernels of flash-linear-attention.
ENGINES = ("reference", "chunked", "fla")


def zero_state(
    q: Float[Tensor, "batch heads length key_dim"],
    v: Float[Tensor, "batch heads length value_dim"],
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch heads key_dim value_dim"]:
    """Return the state before the first token, in the dtype of ``q`` unless said."""
    shape = (*q.shape[:2], q.shape[-1], v.shape[-1])
    return torch.zeros(shape, dtype=dtype or q.dtype, device=q.device)


def check_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    chunk_size: int | None,
) -> None:
    """Refuse what no form of the recurrence takes.

    Raises:
        ValueError: If shapes do not match, or ``chunk_size`` is not positive.
    """
    if chunk_size is not None:
        check_sizes(chunk_size=chunk_size)
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
    if initial_state is not None:
        check_shape("initial_state", initial_state, state_shape)
