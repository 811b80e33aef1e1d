"""The adapter with other arguments, beside timm's own layer with its weights."""

from __future__ import annotations

import random

import pytest
from timm.layers.halo_attn import HaloAttn
from torch import nn

from tests.golden.maker import normal, sometimes


@pytest.mark.parametrize("seed", range(60))
def test_halo_attention(maker, seed):
    rng = random.Random(seed)
    heads, block = rng.choice((1, 2, 3, 4)), rng.choice((1, 2, 3, 4))
    dim_out = heads * rng.randint(1, 9)
    kwargs = {"dim": dim_out, "num_heads": heads, "block_size": block, "halo_size": rng.randint(0, 3)}
    if rng.random() < 0.5:
        kwargs |= {"dim": rng.randint(1, 20), "dim_out": dim_out}
    stride = rng.choice((1, 2))
    kwargs |= sometimes(
        rng,
        feat_size=[8, 8],
        qk_ratio=rng.choice((0.25, 0.33, 0.5, 1.0, 1.7, 2.0)),
        qkv_bias=rng.choice((True, False)),
        avg_down=rng.choice((True, False)),
        scale_pos_embed=rng.choice((True, False)),
    )
    kwargs |= {"stride": stride} if stride == 2 else {}
    kwargs |= {"dim_head": rng.choice((None, 0, 1, 5))} if rng.random() < 0.4 else {}
    layer = HaloAttn(**kwargs).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    # timm's average leaves nothing of a map with a side of one.
    x = normal(2, kwargs["dim"], *(block * rng.randint(2 if block == 1 else 1, 3) for _ in "hw"))
    maker.compare("halonet/HaloAttn", kwargs, {"x": x}, lambda leaves: {"y": layer(leaves["x"])}, layer)
