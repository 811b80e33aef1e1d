"""The adapters with other factors, beside the rules of the masks."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.maker import normal


def test_static_masks(maker):
    size, documents = 20, [0, 4, 9, 20]
    i, j = torch.arange(size)[:, None], torch.arange(size)[None]
    document = torch.bucketize(torch.arange(size), torch.tensor(documents[1:]), right=True)
    same = document[:, None] == document
    wanted = {
        "full": ({}, torch.ones(size, size, dtype=torch.bool)),
        "sliding_window": ({"window_size": 3}, (i - j).abs() <= 3),
        "sliding_window_causal": ({"window_size": 0}, i == j),
        "prefix_lm_causal": ({"prefix_length": 6}, (j <= i) | (j <= 6)),
        "global_sliding_window": ({"window_size": 2}, ((i - j).abs() <= 2) | (i < 4) | (j < 4)),
        "causal_document": ({"cu_seqlens": documents}, same & (j <= i)),
        "full_document": ({"cu_seqlens": documents}, same),
    }
    inputs: dict[str, Tensor] = {
        name: normal(1, heads, size, 4) for name, heads in (("q", 4), ("k", 2), ("v", 2))
    }
    for name in wanted:
        inputs |= {
            f"{name}/q_ranges": torch.tensor([[0, size]]),
            f"{name}/k_ranges": torch.tensor([[0, size]]),
        }
        inputs |= {f"{name}/range_types": torch.tensor([0])}
    kwargs = {"total_seqlen": size, "masks": {name: factors for name, (factors, _) in wanted.items()}}
    outputs = {f"{name}/mask": mask for name, (_, mask) in wanted.items()}
    case = maker.write(kwargs, inputs=inputs, outputs=outputs)
    maker.check("longca_bench/StaticMasks", case)
