import random

import pytest
import torch
from timm.layers.halo_attn import HaloAttn

from gatework.layers.vision.halo import HaloAttention


def layer(**options):
    torch.manual_seed(0)
    return HaloAttention(8, **{"num_heads": 2, "block_size": 4, "halo_size": 1} | options).double()


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 9), (3, 2)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": 2, "block_size": 3},
        {"stride": 2, "avg_down": True, "dim_out": 12, "head_dim": 5},
        {"qkv_bias": True, "padding_mode": "mask"},
        {"dim_out": 24, "qk_ratio": 0.33},
    ],
    ids=str,
)
def test_maps_of_any_size(size, options):
    mixer, stride = layer(**options), options.get("stride", 1)
    x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    y = mixer(x)
    assert y.shape == (2, options.get("dim_out", 8), *(-(-length // stride) for length in size))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *mixer.parameters()))


def test_names_are_those_of_released_weights():
    shapes = {name: tuple(p.shape) for name, p in layer(dim_out=12, head_dim=5).named_parameters()}
    assert shapes == {
        "q.weight": (10, 8, 1, 1),
        "kv.weight": (22, 8, 1, 1),
        "pos_embed.height_rel": (11, 5),
        "pos_embed.width_rel": (11, 5),
    }


def test_a_block_sees_its_halo_and_no_more():
    mixer = layer()
    x = torch.randn(1, 8, 12, 12, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 6:, 6:] += 1  # one pixel beyond the halo of the first block
    before, after = mixer(x), mixer(changed)
    assert torch.equal(before[:, :, :4, :4], after[:, :, :4, :4])
    assert (before[:, :, 4:8, 4:8] != after[:, :, 4:8, 4:8]).all()


@pytest.mark.parametrize("seed", range(20))
def test_queries_and_keys_are_as_wide_as_timms(seed):
    rng = random.Random(seed)
    heads = rng.randint(1, 5)
    options = {"num_heads": heads, "qk_ratio": rng.choice((0.1, 0.33, 0.5, 1.0, 1.3, 2.0))}
    dim_out = heads * rng.randint(1, 30)
    theirs = HaloAttn(8, dim_out, **options)
    if theirs.dim_head_qk < 1:
        return
    shapes = {name: p.shape for name, p in theirs.named_parameters()}
    ours = HaloAttention(8, dim_out, **options)
    assert {name: p.shape for name, p in ours.named_parameters()} == shapes
    given = HaloAttention(8, dim_out, **options, head_dim=3)
    assert given.head_dim == 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_ratio": 0.0}, r"qk_ratio must be positive, got 0\.0"),
        ({"qk_ratio": float("nan")}, "qk_ratio must be positive, got nan"),
        ({"dim_out": 9, "num_heads": 9, "qk_ratio": 0.1}, r"each of 9 heads a channel of 9, got 0\.1"),
        ({"num_heads": 3}, "num_heads must divide dim_out=8, got 3"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"stride": 3}, "stride must be one of 1, 2, got 3"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"padding_mode": "same"}, "padding_mode must be one of zeros, mask, got 'same'"),
    ],
    ids=str,
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


@pytest.mark.bad_input
def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"x must have 8 channels, got shape \(1, 4, 8, 8\)"):
        layer()(torch.zeros(1, 4, 8, 8, dtype=torch.float64))
