"""Golden adapters of generalised neighbourhood attention: official keyword arguments to our objects."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework import natten
from gatework.bench.gna import gna
from gatework.masks import Neighborhood
from tests.golden.case import Adapter, Case


def neighborhood_function(case: Case) -> dict[str, Tensor]:
    query = case.inputs["query"]
    function = getattr(natten, f"na{query.ndim - 3}d")
    output, lse = function(**case.inputs, **case.kwargs, return_lse=True)
    grid = tuple(query.shape[1:-2])
    windows = {name: case.kwargs[name] for name in ("stride", "dilation", "is_causal")}
    mask = Neighborhood(grid, case.kwargs["kernel_size"], **windows)
    tokens = mask.q_size
    return {"output": output, "logsumexp": lse, "mask": mask.to_dense(tokens, tokens)}


def neighborhood_module(case: Case) -> dict[str, Tensor]:
    return {"y": case.load(natten.NeighborhoodAttention2D(**case.kwargs))(case.inputs["x"])}


def simulator_tables(case: Case) -> dict[str, Tensor]:
    """The rows of the published use cases in the file's columns; planes have a first axis of one token."""
    table = []
    for row in gna().rows:
        sizes = [
            size
            for name in ("grid", "window", "stride", "q_tile", "kv_tile")
            for size in [1] * (3 - len(row[name])) + row[name]
        ]
        table.append([*sizes, *(row[name] for name in SIMULATED)])
    return {"table": torch.tensor(table, dtype=case.dtype)}


#: The columns of the simulator's tables after the sizes.
SIMULATED = (
    "worst_visited",
    "kv_tiles",
    "speedup",
    "dynamic_speedup",
    "attention_share",
    "sparse_steps",
    "end_to_end",
    "end_to_end_partial",
    "paper_end_to_end",
    "paper_end_to_end_partial",
)

ADAPTERS: dict[str, Adapter] = {
    "gna/NeighborhoodAttention": neighborhood_module,
    "gna/SimulatorTables": simulator_tables,
    "gna/na": neighborhood_function,
}
