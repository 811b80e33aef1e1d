"""Recurrences of single numbers in float32 on a CPU, compiled by numba: selective scan and WKV.

A few neighbouring channels fill the vectors of the processor, and walk through the sequence together; threads
share the sequences of a batch and such groups of channels. The backward pass walks back chunk by chunk, from
states that the forward pass kept. numba is optional and imported by the first call.
"""

from __future__ import annotations

import functools

import torch

from gatework.ops.attention import kernels as attention_kernels


@functools.cache
def is_available() -> bool:
    """Tell whether numba can be had; nothing is compiled yet."""
    # The loops are made of the parts of the attention kernels, which are there or not together.
    return attention_kernels.is_available()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernels() -> bool:
    """Whether kernels can be compiled."""
    return is_available()


def are_used(engine: str | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernels compute: they can, and the checked name of an engine does not say otherwise.

    Raises:
        ValueError: If they cannot, and ``engine`` is ``"chunked-numba"``.
    """
    if engine not in (None, "chunked", "chunked-numba"):
        return False
    required = engine == "chunked-numba"
    fits = device.type == "cpu" and dtype == torch.float32
    if required and not fits:
        raise ValueError(f"engine 'chunked-numba' computes float32 on a CPU, got {dtype} on {device}")
    if required and not has_kernels():
        raise ValueError(
            "engine 'chunked-numba' needs numba, which is not installed: pip install 'gatework[cpu]'"
        )
    return fits and has_kernels()
