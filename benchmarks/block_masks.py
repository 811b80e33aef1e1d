"""Blocks of masks for FlexAttention: from the mask's formula, against evaluating every pair.

Ours, ``mask.block_mask(...)``, and PyTorch's ``create_block_mask`` are checked to hold the same blocks before
they are timed; they take turns. Then ours alone at eight times the length, where all pairs of one mask would
take gigabytes.

    python benchmarks/block_masks.py [--length 16384] [--turns 3] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from _timing import take_turns
from gatework import masks
from gatework.masks import Mask

#: What tells one BlockMask from another.
FIELDS = [
    f"{full}{side}_{what}"
    for full in ("", "full_")
    for side in ("kv", "q")
    for what in ("num_blocks", "indices")
]


def subjects(length: int) -> dict[str, Mask]:
    """Masks for sequences of this length, a power of two of at least 256."""
    height = 1 << (length.bit_length() // 2)
    documents = masks.sample_document_lengths(length, seed=0)
    return {
        "causal": masks.Causal(),
        "sliding window": masks.SlidingWindow(256, 256),
        "causal documents": masks.CausalDocument(documents),
        "shared question": masks.SharedQuestion(documents),
        "global window": masks.GlobalWindow(256),
        "block-sparse": masks.BlockSparse.random(length, length, 128, 0.1),
        "neighborhood 2-D": masks.Neighborhood((height, length // height), 7),
        "causal and near": masks.Causal() & masks.SlidingWindow(256, 0),
    }


def ours(mask: Mask, length: int) -> Any:
    return mask.block_mask(length, length)


def theirs(mask: Mask, length: int) -> Any:
    return create_block_mask(mask, None, None, length, length, device="cpu")


SIDES = {"pairs": theirs, "formula": ours}


def measure(name: str, length: int, turns: int) -> dict[str, Any]:
    """Time both sides, taking turns, and ours alone at eight times the length."""
    mask = subjects(length)[name]
    expected, found = (side(mask, length) for side in SIDES.values())
    for field in FIELDS:
        if not torch.equal(getattr(found, field), getattr(expected, field)):
            raise SystemExit(f"{name}: {field} differs from what create_block_mask says")
    timings = take_turns({key: lambda s=side: s(mask, length) for key, side in SIDES.items()}, turns)
    longer = subjects(8 * length)[name]
    alone = take_turns({"longer": lambda: ours(longer, 8 * length)}, turns)["longer"]
    return {
        "mask": name,
        "length": length,
        **{key: asdict(timing) for key, timing in timings.items()},
        "ratio": timings["pairs"].median / timings["formula"].median,
        "longer": {"length": 8 * length, **asdict(alone)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=16384, help="tokens, a power of two")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(2)
    results = [measure(name, options.length, options.turns) for name in subjects(options.length)]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"milliseconds, {options.length} tokens, blocks of 128, two threads: median (range)")
    for result in results:
        columns = "  ".join(
            "{0} {median:8.2f} ({fastest:.2f} - {slowest:.2f})".format(key, **result[key]) for key in SIDES
        )
        longer = result["longer"]
        print(
            f"{result['mask']:17} {columns}  ratio {result['ratio']:6.0f}x  "
            f"at {longer['length']}: {longer['median']:.0f}"
        )


if __name__ == "__main__":
    main()
