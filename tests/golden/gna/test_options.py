"""The adapters with other arguments, beside the definition, for one to three axes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import Tensor, nn

from gatework.ops.vision.neighborhood import neighborhood_reference
from tests.golden.maker import normal, sometimes


def windows(rng: random.Random, axes: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A grid and windows on it; each option a tuple, where it can a number, or left out."""
    sizes = [rng.randint(2, 4) for _ in range(axes)]
    dilations = [rng.randint(1, 2) for _ in range(axes)]
    options: dict[str, Any] = {
        "kernel_size": sizes,
        "stride": [rng.randint(1, size) for size in sizes],
        "dilation": dilations,
        "is_causal": [rng.choice((True, False)) for _ in range(axes)],
    }
    for name, values in options.items():
        if rng.random() < 0.4:
            options[name] = min(values)
    if rng.random() < 0.3:
        del options[rng.choice(("stride", "dilation", "is_causal"))]
    size, stride = options["kernel_size"], options.get("stride", 1)
    if isinstance(size, int):
        options["stride"] = min(stride) if isinstance(stride, list) else stride
        options["stride"] = min(options["stride"], size)
    return tuple(s * d + rng.randint(0, 3) for s, d in zip(sizes, dilations, strict=True)), options


def tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_neighborhood_module(maker, axes, seed):
    rng = random.Random(100 * axes + seed)
    grid, options = windows(rng, axes)
    heads, dim = rng.choice(((1, 5), (2, 6), (3, 6)))
    extra = sometimes(
        rng, qkv_bias=rng.choice((True, False)), qk_scale=rng.choice((None, 0, 0.3)), proj_drop=0.25
    )
    layers = nn.ModuleDict(
        {"qkv": nn.Linear(dim, 3 * dim, bias=extra.get("qkv_bias", True)), "proj": nn.Linear(dim, dim)}
    ).double()

    def truth(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        q, k, v = layers["qkv"](leaves["x"]).unflatten(-1, (3, heads, -1)).unbind(-3)
        y, _ = neighborhood_reference(q, k, v, **tuples(options), scale=extra.get("qk_scale") or None)
        return {"y": layers["proj"](y.flatten(-2))}

    kwargs = {"embed_dim": dim, "num_heads": heads, **options, **extra}
    maker.compare("gna/NeighborhoodAttention", kwargs, {"x": normal(2, *grid, dim)}, truth, layers)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_neighborhood_function(maker, axes, seed):
    rng = random.Random(1000 * axes + seed)
    grid, options = windows(rng, axes)
    heads, kv_heads = rng.choice(((2, 2), (4, 2), (3, 1)))
    inputs = {
        "query": normal(2, *grid, heads, 5),
        "key": normal(2, *grid, kv_heads, 5),
        "value": normal(2, *grid, kv_heads, 3),
    }
    if rng.random() < 0.5:
        inputs |= {
            "additional_keys": normal(2, 3, kv_heads, 5),
            "additional_values": normal(2, 3, kv_heads, 3),
        }
    kernels = {"backend": "flex-fna", "q_tile_shape": [4], "kernel_schedule": "coop", "torch_compile": True}
    extra = sometimes(rng, scale=rng.choice((None, 0, 0.7)), return_lse=True, **kernels)

    def truth(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        y, lse = neighborhood_reference(**leaves, **tuples(options), scale=extra.get("scale") or None)
        return {"output": y, "logsumexp": lse}

    maker.compare("gna/na", {**options, **extra}, inputs, truth)
