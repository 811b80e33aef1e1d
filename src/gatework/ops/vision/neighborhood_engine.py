"""NATTEN as an engine of neighbourhood attention: when it is asked, and what it is told.

NATTEN (https://natten.org) is the authors' library of CUDA kernels. Nothing here needs it.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatework.checks import check_choice
from gatework.ops.engines import may_be_chosen
from gatework.ops.vision.neighborhood_windows import WindowSpec

#: Values of ``backend`` that are ours: one engine or the other, whatever the device.
GATEWORK, NATTEN = "gatework", "natten"
#: Values of ``backend`` that are NATTEN's own.
NATTEN_BACKENDS = ("cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna", "reference")
#: What NATTEN calls the schedules of its kernels.
KERNEL_SCHEDULES = ("non", "coop", "pp")


class NattenOptions(NamedTuple):
    """Arguments of NATTEN that choose and tune its kernels; none of them changes a result.

    Attributes:
        attention_kwargs: Arguments for its dense attention, which serves additional keys.
        backend: ``None``: ours, until NATTEN's kernels have been tried behind this interface on CUDA
            (:data:`gatework.ops.engines.TRIED`). ``"gatework"``: ours. ``"natten"``: NATTEN, by a kernel of
            its choice. A kernel of NATTEN by its name: that kernel, or ours with a warning where NATTEN is
            not installed.
        q_tile_shape: Queries of a tile along each axis, in NATTEN's forward kernel.
        kv_tile_shape: Keys of a tile along each axis, in the forward kernel.
        backward_q_tile_shape: Queries of a tile along each axis, in the backward kernel.
        backward_kv_tile_shape: Keys of a tile along each axis, in the backward kernel.
        backward_kv_splits: Parts into which the backward kernel cuts the keys, of all or of each axis.
        backward_use_pt_reduction: Whether PyTorch adds up what the backward pass needs of the outputs.
        run_persistent_kernel: Whether thread blocks take tile after tile, on Hopper and Blackwell.
        kernel_schedule: How Hopper's kernel overlaps its work: ``None``, ``"non"``, ``"coop"`` or ``"pp"``.
        torch_compile: Whether FlexAttention, as one of NATTEN's backends, is compiled.
    """

    attention_kwargs: Mapping[str, Any] | None = None
    backend: str | None = None
    q_tile_shape: Sequence[int] | None = None
    kv_tile_shape: Sequence[int] | None = None
    backward_q_tile_shape: Sequence[int] | None = None
    backward_kv_tile_shape: Sequence[int] | None = None
    backward_kv_splits: int | Sequence[int] | None = None
    backward_use_pt_reduction: bool = False
    run_persistent_kernel: bool = True
    kernel_schedule: Any | None = None
    torch_compile: bool = False


def check_options(options: NattenOptions) -> None:
    """Refuse what NATTEN has no meaning for.

    Raises:
        TypeError: If ``attention_kwargs`` is no mapping.
        ValueError: If ``backend`` or ``kernel_schedule`` is unknown, or ``"natten"`` not installed.
    """
    if options.attention_kwargs is not None and not isinstance(options.attention_kwargs, Mapping):
        raise TypeError(f"attention_kwargs must be a dict or None, got {options.attention_kwargs!r}")
    backends = (GATEWORK, NATTEN, *NATTEN_BACKENDS)
    check_choice("backend", options.backend, (None, *backends))
    check_kernel_schedule(options.kernel_schedule)
    if options.backend == NATTEN and natten_module() is None:
        raise ValueError("backend 'natten' needs the package natten, which is not installed")


def check_kernel_schedule(kernel_schedule: object) -> None:
    """Refuse a schedule of kernels that NATTEN does not know.

    Raises:
        ValueError: If it is unknown.
    """
    # NATTEN also takes members of its enumeration KernelSchedule, which are no strings.
    unknown = isinstance(kernel_schedule, (str, int, float)) and kernel_schedule not in KERNEL_SCHEDULES
    if unknown:
        raise ValueError(
            f"kernel_schedule must be None or one of {', '.join(KERNEL_SCHEDULES)}, got {kernel_schedule!r}"
        )


@functools.cache
def natten_module() -> Any | None:
    """Return the module ``natten``, or ``None`` where it is not installed."""
    return importlib.import_module("natten") if find_spec("natten") else None


def uses_natten(query: Tensor, options: NattenOptions) -> bool:
    """Whether NATTEN is to run the call; warn if one of its kernels is named and it is not installed."""
    if options.backend is None:
        tried = query.is_cuda and may_be_chosen("neighborhood_attention", NATTEN, query.device)
        # Its kernels know no float64.
        return tried and query.dtype != torch.float64 and natten_module() is not None
    if options.backend == GATEWORK:
        return False
    if natten_module() is None:
        warnings.warn(
            f"backend={options.backend!r} is a kernel of NATTEN, which is not installed: "
            "gatework computes the same, at its own speed",
            stacklevel=2,
        )
        return False
    return True


def natten_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: WindowSpec,
    scale: float | None,
    extra: tuple[Tensor, Tensor] | None,
    options: NattenOptions,
) -> tuple[Tensor, Tensor] | None:
    """Let NATTEN compute outputs and log-sum-exp; ``None`` if it was not asked for and cannot."""
    function = getattr(natten_module(), f"na{query.ndim - 3}d")
    if scale == 0:
        query, scale = query * 0, 1.0  # NATTEN takes a scale of zero for none
    extra_keys, extra_values = extra or (None, None)
    arguments = options._asdict()
    if options.backend == NATTEN:
        arguments["backend"] = None
    if options.attention_kwargs is not None:
        arguments["attention_kwargs"] = dict(options.attention_kwargs)  # NATTEN writes into it
    try:
        output, lse = function(
            query,
            key,
            value,
            **spec._asdict(),
            scale=scale,
            additional_keys=extra_keys,
            additional_values=extra_values,
            **arguments,
            return_lse=True,
        )
    except NotImplementedError as error:
        if options.backend is not None:
            raise
        warnings.warn(
            f"NATTEN has no kernel for this call, gatework computes it at its own speed: {error}",
            stacklevel=2,
        )
        return None
    return output, lse
