"""What every form of attention asks of its tensors: errors in the caller's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework.masks import Mask


def check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse queries, keys and values whose shapes or dtypes do not fit together."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape (batch, heads, length, head_dim), "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        # Under autocast the projections of one layer may differ in dtype, and PyTorch casts them itself.
        if tensor.dtype != q.dtype and not torch.is_autocast_enabled(q.device.type):
            raise ValueError(f"{name} must have the dtype of q, {q.dtype}, got {tensor.dtype}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[3] == 0:
        raise ValueError(
            f"k must have the batch and the head_dim >= 1 of q, {tuple(q.shape)}, got {tuple(k.shape)}"
        )
    if k.shape[1] == 0 or q.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"the heads of k must divide those of q, {q.shape[1]}, got {k.shape[1]}")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must have the batch, heads and length of k, {tuple(k.shape[:3])}, got {tuple(v.shape[:3])}"
        )


def check_mask(mask: object, q: Tensor, k: Tensor) -> None:
    """Refuse what is neither booleans that broadcast to the scores nor a Mask for these lengths."""
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be boolean, True where allowed, got {mask.dtype}; see also bias")
        check_broadcasts("mask", mask, score_shape(q, k))
    elif mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be a gatework.masks.Mask or a boolean tensor, got {mask!r}")
    elif mask is not None and not torch.compiler.is_compiling():  # whoever evaluates it checks again
        mask.check(q.shape[2], k.shape[2], batch=q.shape[0], heads=q.shape[1])


def check_broadcasts(name: str, tensor: Tensor, scores: tuple[int, ...]) -> None:
    """Refuse a tensor that does not broadcast to the scores, or that would enlarge them."""
    sizes = tuple(tensor.shape)
    trailing = scores[len(scores) - len(sizes) :] if len(sizes) <= len(scores) else ()
    if len(trailing) != len(sizes) or any(a not in (1, b) for a, b in zip(sizes, trailing, strict=True)):
        raise ValueError(
            f"{name} must broadcast to (batch, heads, q_length, kv_length)={scores}, got {sizes}"
        )


def score_shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int]:
    """Return ``(batch, heads, q_length, kv_length)``."""
    return q.shape[0], q.shape[1], q.shape[2], k.shape[2]
