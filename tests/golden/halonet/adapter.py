"""Golden adapters of HaloNet: the layer with the names of the released weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gatework.layers.vision.halo import HaloAttention
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Adapter, Case


def halo_attention(case: Case) -> Mapping[str, Tensor]:
    a = official(
        "HaloAttn",
        case.kwargs,
        dim=REQUIRED,
        dim_out=None,
        feat_size=None,  # nothing uses it
        stride=1,
        num_heads=8,
        dim_head=None,
        block_size=8,
        halo_size=3,
        qk_ratio=1.0,
        qkv_bias=False,
        avg_down=False,
        scale_pos_embed=False,
        device=None,
        dtype=None,
    )
    only("HaloAttn", a, device=None, dtype=None)
    same = (
        "stride",
        "num_heads",
        "block_size",
        "halo_size",
        "qk_ratio",
        "qkv_bias",
        "avg_down",
        "scale_pos_embed",
    )
    layer = HaloAttention(
        a["dim"],
        a["dim_out"] or None,  # there 0 is the default, too
        head_dim=a["dim_head"] or None,
        **{name: a[name] for name in same},
    )
    x = case.inputs["x"]
    y = case.load(layer)(x)
    # Where it averages, the official layer drops a last odd row or column, which ours keeps.
    return {"y": y[:, :, : x.shape[2] // a["stride"], : x.shape[3] // a["stride"]]}


ADAPTERS: dict[str, Adapter] = {"halonet/HaloAttn": halo_attention}

#: What the authors' cases have and this library does not.
NOT_HERE = {
    "halonet/ByobNet": "the network is not here yet, only its layer",
    "halonet/HaloStage": "the block around the layer is not here yet",
}
