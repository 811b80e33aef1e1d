"""flash-linear-attention as an engine: when it is asked, and what it is told.

The library ``fla`` (https://github.com/fla-org/flash-linear-attention) holds Triton kernels for GPUs. Its
tensors are (batch, length, heads, dim); its states and log-decays mean what ours do. This translation is
tested against stand-ins that compute what the library documents (version 0.6). It has not been run on a GPU.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import torch
from torch import Tensor

from gatework.ops.engines import may_be_chosen


def is_wanted(engine: str | None, operator: str, q: Tensor, v: Tensor) -> bool:
    """Tell whether a call goes to flash-linear-attention.

    By default half precisions on CUDA do, once its kernels have been tried there. Float32 and float64 stay
    here, because the kernels multiply float32 with fewer bits and have no float64.

    Args:
        engine: Checked name of what the caller asked for; ``None`` for the default.
        operator: Which recurrence: the name of its function.
        q: Queries.
        v: Values.

    Raises:
        ImportError: If it is asked for by name and not installed.
        ValueError: If it is asked for by name and does not compute in the precision of the tensors.
    """
    dtype = torch.promote_types(q.dtype, v.dtype)
    is_half = dtype in (torch.float16, torch.bfloat16)
    if engine is None:
        tried = q.is_cuda and may_be_chosen(operator, "fla", q.device)
        return tried and is_half and find_spec("fla") is not None
    if engine != "fla":
        return False
    if find_spec("fla") is None:
        raise ImportError(
            "engine 'fla' needs the package flash-linear-attention: pip install 'gatework[fla]'"
        )
    takes_float32 = operator == "gated_linear_attention"
    if not (is_half or (takes_float32 and dtype == torch.float32)):
        accepted = "bfloat16, float16 and float32" if takes_float32 else "bfloat16 and float16"
        raise ValueError(f"engine 'fla' computes this recurrence in {accepted}, got {dtype}")
    return True


def gated(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    bonus: Tensor | None,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`~gatework.ops.recurrence.linear_recurrence.gated_linear_attention` by kernels of GLA, RWKV-6."""
    if bonus is not None:
        # RWKV-6 decays like RWKV-5, from the token after the one that is read.
        decay = _per_channel(log_decay, q)
        return _call("rwkv6", "chunk_rwkv6", (q, k, v), scale, state, w=decay, u=bonus.to(_dtype(q, v)))
    if log_decay is None or log_decay.ndim == 3:
        return _call("simple_gla", "chunk_simple_gla", (q, k, v), scale, state, g=log_decay)
    return _call("gla", "chunk_gla", (q, k, v), scale, state, g=log_decay)


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`gatework.ops.recurrence.linear_recurrence.delta_rule` by kernels of DeltaNet and KDA."""
    beta = beta.to(_dtype(q, v))
    if log_decay is None:
        return _call("delta_rule", "chunk_delta_rule", (q, k, v), scale, state, beta=beta)
    if log_decay.ndim == 3:
        name = "gated_delta_rule"
        return _call(name, f"chunk_{name}", (q, k, v), scale, state, g=log_decay, beta=beta)
    return _call("kda", "chunk_kda", (q, k, v), scale, state, g=log_decay, beta=beta)


def low_rank(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`gatework.ops.recurrence.linear_recurrence.low_rank_recurrence` by the kernel of RWKV-7."""
    reads, writes, decay = a.to(_dtype(q, v)), b.to(_dtype(q, v)), _per_channel(log_decay, q)
    module = "generalized_delta_rule"
    return _call(module, "chunk_dplr_delta_rule", (q, k, v), scale, state, a=reads, b=writes, gk=decay)


def _call(
    module: str,
    function: str,
    tokens: tuple[Tensor, Tensor, Tensor],
    scale: float,
    state: Tensor | None,
    **others: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Call ``fla.ops.module.function``: sequences to its layout and back, states and decays in float32."""
    q, _, v = tokens
    kernel = getattr(importlib.import_module(f"fla.ops.{module}"), function)
    queries, keys, values = (tensor.to(_dtype(q, v)).transpose(1, 2) for tensor in tokens)
    named = {
        name: None if x is None else _to_layout(x.float() if name in ("g", "gk", "w") else x)
        for name, x in others.items()
    }
    outputs, state = kernel(
        queries,
        keys,
        values,
        scale=scale,
        initial_state=None if state is None else state.float(),
        output_final_state=True,
        **named,
    )
    return outputs.transpose(1, 2).to(v.dtype), state.float()


def _to_layout(x: Tensor) -> Tensor:
    """(batch, length, heads, ...) of (batch, heads, length, ...); weights per head stay as they are."""
    return x if x.ndim == 2 else x.transpose(1, 2)


def _per_channel(log_decay: Tensor | None, q: Tensor) -> Tensor:
    if log_decay is None:
        return torch.zeros_like(q, dtype=torch.float32)
    return log_decay.unsqueeze(-1).expand(q.shape) if log_decay.ndim == 3 else log_decay


def _dtype(q: Tensor, v: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, v.dtype)
