"""Golden adapters of generalised neighbourhood attention: official keyword arguments to our objects."""

from __future__ import annotations

from torch import Tensor

from gatework import natten
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


ADAPTERS: dict[str, Adapter] = {
    "gna/NeighborhoodAttention": neighborhood_module,
    "gna/na": neighborhood_function,
}
