"""Golden adapters of generalised neighbourhood attention: official keyword arguments to our objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatework import natten
from gatework.bench.gna import end_to_end, simulate
from gatework.masks import Neighborhood
from tests.golden.arguments import REQUIRED, official
from tests.golden.case import Adapter, Case

#: Arguments of ``na1d``, ``na2d`` and ``na3d`` that choose or tune a kernel and change no number.
KERNELS = {
    "attention_kwargs": None,
    "backend": None,
    "q_tile_shape": None,
    "kv_tile_shape": None,
    "backward_q_tile_shape": None,
    "backward_kv_tile_shape": None,
    "backward_kv_splits": None,
    "backward_use_pt_reduction": False,
    "run_persistent_kernel": True,
    "kernel_schedule": None,
    "torch_compile": False,
}


def windows(arguments: dict[str, Any]) -> dict[str, Any]:
    """Window, stride, dilation and causality: numbers for all axes, or tuples with one for each."""
    names = ("kernel_size", "stride", "dilation", "is_causal")
    values = {name: arguments[name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def neighborhood_function(case: Case) -> dict[str, Tensor]:
    query = case.inputs["query"]
    name = f"na{query.ndim - 3}d"
    a = official(
        name,
        case.kwargs,
        kernel_size=REQUIRED,
        stride=1,
        dilation=1,
        is_causal=False,
        scale=None,
        return_lse=False,  # the case compares it anyway
        **KERNELS,
    )
    tensors = official(
        name,
        case.inputs,
        query=REQUIRED,
        key=REQUIRED,
        value=REQUIRED,
        additional_keys=None,
        additional_values=None,
    )
    scale = a["scale"] or None  # there 0 is the default, too
    output, lse = getattr(natten, name)(**tensors, **windows(a), scale=scale, return_lse=True)
    size = query.shape[1:-2]
    of_mask = windows(a)
    mask = Neighborhood(tuple(size), of_mask.pop("kernel_size"), **of_mask)
    return {"output": output, "logsumexp": lse, "mask": mask.to_dense(size.numel(), size.numel())}


def neighborhood_module(case: Case) -> dict[str, Tensor]:
    """As many axes as the tuples say; where all are numbers, as the input has."""
    a = official(
        "NeighborhoodAttention",
        case.kwargs,
        embed_dim=REQUIRED,
        num_heads=REQUIRED,
        kernel_size=REQUIRED,
        stride=1,
        dilation=1,
        is_causal=False,
        qkv_bias=True,
        qk_scale=None,
        proj_drop=0.0,
    )
    x = case.inputs["x"]
    axes = {len(value) for value in windows(a).values() if isinstance(value, Sequence)} or {x.ndim - 2}
    (number,) = axes
    module = getattr(natten, f"NeighborhoodAttention{number}D")(
        a["embed_dim"],
        a["num_heads"],
        **windows(a),
        qkv_bias=a["qkv_bias"],
        qk_scale=a["qk_scale"] or None,  # there 0 is the default, too
        proj_drop=a["proj_drop"],
    )
    return {"y": case.load(module)(x)}


#: Columns of the simulator's tables that are given, and those that follow from them.
GIVEN = {f"{name}{axis}" for name in ("L", "w", "s", "tq", "tk") for axis in range(3)}
GIVEN |= {"sa_share", "gna_step_fraction", "paper_e2e_all", "paper_e2e_partial"}
FOLLOW = {"worst_visited_kv_tiles", "total_kv_tiles", "speedup_static", "speedup_dynamic"}
FOLLOW |= {"e2e_all_steps", "e2e_partial"}


def simulator_tables(case: Case) -> dict[str, Tensor]:
    """What the simulator says of the sizes and shares in the rows."""
    # Names of the rows, and how far the paper's own numbers are from the authors' tables.
    a = official("the simulator", case.kwargs, columns=REQUIRED, rows=None, max_abs_dev=None)
    columns = a["columns"]
    official("the simulator's table", dict.fromkeys(columns), **dict.fromkeys(GIVEN | FOLLOW))
    rows = case.part("out")["table"].double().tolist()
    table = [simulated(dict(zip(columns, row, strict=True))) for row in rows]
    return {"table": torch.tensor([[row[name] for name in columns] for row in table], dtype=case.dtype)}


def simulated(row: dict[str, float]) -> dict[str, float]:
    """A row with what the simulator says of its sizes; planes have a first axis of one token."""
    axes = [axis for axis in range(3) if row.get(f"L{axis}", 1) > 1]

    def sizes(name: str) -> list[int]:
        return [round(row[f"{name}{axis}"]) for axis in axes]

    found = simulate(sizes("L"), sizes("w"), stride=sizes("s"), q_tile=sizes("tq"), kv_tile=sizes("tk"))
    speedup, share, steps = found.static.speedup, row["sa_share"], row["gna_step_fraction"]
    return row | {
        "worst_visited_kv_tiles": found.static.worst,
        "total_kv_tiles": found.static.dense_kv_tiles,
        "speedup_static": speedup,
        "speedup_dynamic": found.dynamic.speedup,
        "e2e_all_steps": end_to_end(speedup, attention_share=share),
        "e2e_partial": end_to_end(speedup, attention_share=share, sparse_steps=steps),
    }


ADAPTERS: dict[str, Adapter] = {
    "gna/NeighborhoodAttention": neighborhood_module,
    "gna/SimulatorTables": simulator_tables,
    "gna/na": neighborhood_function,
}
