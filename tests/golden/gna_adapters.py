"""Golden adapters of generalised neighbourhood attention: official keyword arguments to our objects."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework import natten
from gatework.bench.gna import end_to_end, simulate
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
    """What the simulator says of the sizes and shares in the rows."""
    columns = case.kwargs["columns"]
    rows = case.part("out")["table"].double().tolist()
    table = [simulated(dict(zip(columns, row, strict=True))) for row in rows]
    return {"table": torch.tensor([[row[name] for name in columns] for row in table], dtype=case.dtype)}


def simulated(row: dict[str, float]) -> dict[str, float]:
    """A row with what the simulator says of its sizes; planes have a first axis of one token."""
    axes = [axis for axis in range(3) if row[f"L{axis}"] > 1]

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
