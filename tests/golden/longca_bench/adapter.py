"""Golden adapters of the long-context attention benchmark: official sampled factors to our masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gatework import masks
from gatework.masks import BlockSparse, Mask, Slices
from gatework.ops import attention
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Adapter, Case

Factors = Mapping[str, Any]

#: Factors that some masks are drawn with, and what else the generator says of each.
FACTORS = {"cu_seqlens": None, "prefix_length": None, "window_size": None, "block_size": None}
SAID = {"area_mask": None, "area_ranges": None, "routes_agree": None, "range_flops_fwd": None}

#: Our mask for the factors that the authors' generator drew, by their names of the masks.
STATIC: dict[str, Callable[[Factors], Mask]] = {
    "full": lambda f: masks.Full(),
    "causal": lambda f: masks.Causal(),
    "sliding_window": lambda f: masks.SlidingWindow(f["window_size"], f["window_size"]),
    "sliding_window_causal": lambda f: masks.SlidingWindow(f["window_size"], 0),
    "full_document": lambda f: masks.Document.from_cu_seqlens(f["cu_seqlens"]),
    "causal_document": lambda f: masks.CausalDocument.from_cu_seqlens(f["cu_seqlens"]),
    "share_question": lambda f: masks.SharedQuestion.from_cu_seqlens(f["cu_seqlens"]),
    "causal_blockwise": lambda f: masks.CausalBlockwise.from_cu_seqlens(f["cu_seqlens"]),
    "global_sliding_window": lambda f: masks.GlobalWindow(f["window_size"], compat="official"),
    "prefix_lm_causal": lambda f: masks.PrefixLM(f["prefix_length"], compat="official"),
    "prefix_lm_document": lambda f: masks.PrefixLMDocument.from_cu_seqlens(
        f["cu_seqlens"], prefix=f["prefix_length"], compat="official"
    ),
    "block_causal_document": lambda f: masks.BlockCausalDocument.from_cu_seqlens(
        f["cu_seqlens"], block=f["block_size"]
    ),
}


def attended(case: Case, name: str, mask: Mask) -> dict[str, Tensor]:
    """Output and log-sum-exp under a mask, of inputs of its own: the file stores its gradients apart."""
    own = {part: case.inputs[part].detach().clone().requires_grad_() for part in "qkv"}
    case.inputs |= {f"{name}/{part}": tensor for part, tensor in own.items()}
    output, lse = attention(*own.values(), mask=mask, return_lse=True)
    return {f"{name}/o": output, f"{name}/lse": lse}


def with_sum(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add what the stored cotangent is of: all outputs have the same one."""
    return {**outputs, "o": sum(output for name, output in outputs.items() if name.endswith("/o"))}


def static_masks(case: Case) -> dict[str, Tensor]:
    # The others drew the factors, which are given.
    drawn = {"seed": None, "window": None, "distribution": None, "block_size": None}
    a = official("MaskIterator", case.kwargs, total_seqlen=REQUIRED, masks=REQUIRED, **drawn)
    outputs: dict[str, Tensor] = {}
    size = a["total_seqlen"]
    for name, factors in a["masks"].items():
        if name not in STATIC:
            raise NotImplementedError(f"the mask {name!r} is not here, only {', '.join(STATIC)}")
        factors = official(f"the mask {name}", factors, **FACTORS, **SAID)
        mask = STATIC[name](factors)
        slices = Slices.from_ranges(
            *(case.inputs[f"{name}/{part}"] for part in ("q_ranges", "k_ranges", "range_types"))
        )
        for area, ours in (("area_mask", mask), ("area_ranges", slices)):
            assert factors[area] in (None, ours.count(size, size)), f"{name}: {area}"
        outputs |= attended(case, name, mask)
        outputs[f"{name}/mask"] = mask.to_dense(size, size)
        outputs[f"{name}/mask_ranges"] = slices.to_dense(size, size)
    return with_sum(outputs)


def block_sparse(case: Case) -> dict[str, Tensor]:
    given = case.inputs
    # The last one drew the sizes of blocks, which are given; the heads are those of the inputs.
    heads = {"num_q_heads": given["q"].shape[1], "num_kv_heads": given["k"].shape[1]}
    a = official(
        "block_sparse",
        case.kwargs,
        seqlen=REQUIRED,
        num_blocks=REQUIRED,
        sparsity_ratio=REQUIRED,
        head_dim=given["q"].shape[3],
        min_block=None,
        **heads,
    )
    only("block_sparse", a, head_dim=given["q"].shape[3], **heads)
    size, number = a["seqlen"], a["num_blocks"]
    if size % number:
        raise NotImplementedError(f"block_sparse: num_blocks={number} must divide seqlen={size}")
    block = size // number
    scores = given["scores"].detach()
    uniform = BlockSparse.from_scores(scores, a["sparsity_ratio"], block)
    block_map = uniform.blocks.tensor
    by_query, by_key = (
        BlockSparse.from_indices(
            given[f"uniform/{side}_index"],
            block,
            q_length=size,
            kv_length=size,
            counts=given[f"uniform/{side}_num"],
        )
        for side in ("q2k", "k2q")
    )
    assert by_query == uniform
    assert torch.equal(by_key.blocks.tensor.mT, block_map)
    variable = BlockSparse(block_map, given["variable/row_sizes"], given["variable/col_sizes"])
    outputs = {"uniform/block_mask": block_map[0]}
    for name, mask in (("uniform", uniform), ("variable", variable)):
        outputs |= attended(case, name, mask)
        outputs[f"{name}/mask"] = mask.to_dense(size, size)[0]
    return with_sum(outputs)


ADAPTERS: dict[str, Adapter] = {
    "longca_bench/StaticMasks": static_masks,
    "longca_bench/BlockSparse": block_sparse,
}

#: What the authors' cases have and this library does not.
NOT_HERE = {"longca_bench/ContextParallelSharding": "attention across processes is not here yet"}
