"""The masks that are measured unless others are asked for, and the presets of the benchmark.

Each family is written as text in terms of the length ``N``, in the language that
:func:`~gatework.bench.attention.expressions.parse_mask` reads: what is measured can be copied from a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gatework.masks import DOCUMENT_LENGTHS

#: Every pattern of the library, by name (arXiv:2510.17896, section 3, and arXiv:2504.16922).
FAMILIES: Mapping[str, str] = {
    "full": "Full()",
    "causal": "Causal()",
    "window": "SlidingWindow(256, 256)",
    "causal-window": "SlidingWindow(256, 0)",
    "documents": "Document.from_lengths(documents(N))",
    "causal-documents": "CausalDocument.from_lengths(documents(N))",
    "prefix": "PrefixLM(N // 8)",
    "prefix-documents": "PrefixLMDocument.from_lengths(documents(N), prefix=34)",
    "shared-question": "SharedQuestion.from_lengths(documents(N))",
    "causal-blockwise": "CausalBlockwise.from_lengths(documents(N))",
    "global-window": "GlobalWindow(256)",
    "block-causal": "BlockCausal(256)",
    "block-causal-documents": "BlockCausalDocument.from_lengths(documents(N), block=256)",
    "block-sparse": "BlockSparse.random(N, N, 128, 0.1)",
    "block-sparse-64": "BlockSparse.random(N, N, 64, 0.1)",
    "random-blocks": "SlidingWindow(128, 0) | RandomBlocks(128, 3)",
    "compressed-blocks": "CompressedBlocks(32, 1)",
    "neighborhood-2d": "Neighborhood(grid(N), 7)",
    "neighborhood-2d-blocked": "Neighborhood(grid(N), 8, stride=8)",
    "halo-2d": "Halo(grid(N), 8, 3)",
    "windows-2d": "Windows(grid(N), 8)",
}

#: Options by name; those that a call states itself go before them.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "masks": ("causal", "window", "causal-documents", "block-sparse", "neighborhood-2d"),
        "lengths": (1024, 4096),
        "passes": ("forward",),
        "repeats": 5,
        "min_time": 0.1,
    },
    "published": {
        "masks": tuple(FAMILIES),
        "lengths": (1024, 2048, 4096, 8192, 16384),
        "dtypes": ("float32", "bfloat16"),
        "passes": ("forward", "both"),
        "repeats": 9,
        "min_time": 0.5,
    },
}


def documents(length: int) -> list[int]:
    """Return lengths of documents: those of ``masks.DOCUMENT_LENGTHS`` over and over, the last cut.

    For 4096 tokens that is the list itself, so that measurements of different machines compare.
    """
    lengths: list[int] = []
    while length > 0:
        lengths.append(min(DOCUMENT_LENGTHS[len(lengths) % len(DOCUMENT_LENGTHS)], length))
        length -= lengths[-1]
    return lengths


def grid(length: int) -> tuple[int, int]:
    """Return rows and columns of the most square grid of ``length`` tokens, no more rows than columns."""
    rows = next((side for side in range(math.isqrt(length), 0, -1) if length % side == 0), 0)
    return rows, length // rows if rows else 0
