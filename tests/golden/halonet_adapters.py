"""Golden adapters of HaloNet: the layer with the names of the released weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gatework.layers.vision.halo import HaloAttention
from tests.golden.case import Adapter, Case

#: Names of the released layer's options that are not ours.
NAMES = {"dim_head": "head_dim"}


def halo_attention(case: Case) -> Mapping[str, Tensor]:
    layer = HaloAttention(**{NAMES.get(name, name): value for name, value in case.kwargs.items()})
    return {"y": case.load(layer)(case.inputs["x"])}


ADAPTERS: dict[str, Adapter] = {"halonet/HaloAttn": halo_attention}
