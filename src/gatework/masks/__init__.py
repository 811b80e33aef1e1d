"""Who may attend to whom: small frozen values, combined with ``&``, ``|`` and ``~``."""

from gatework.masks.algebra import EMPTY, FULL, PARTIAL, And, Entry, Mask, Not, Or, QueryOffset
from gatework.masks.axes import AxisWindows
from gatework.masks.block_sparse import BlockSparse
from gatework.masks.context import BlockCausal, GlobalWindow, PrefixLM
from gatework.masks.documents import (
    BlockCausalDocument,
    CausalBlockwise,
    CausalDocument,
    Document,
    PrefixLMDocument,
    SharedQuestion,
)
from gatework.masks.earlier_blocks import CompressedBlocks, RandomBlocks
from gatework.masks.grid import Grid, GridMask, Halo, Neighborhood, Windows
from gatework.masks.sampling import (
    DOCUMENT_HISTOGRAM,
    DOCUMENT_LENGTHS,
    log_normal_histogram,
    sample_document_lengths,
)
from gatework.masks.sequence import Causal, Full, SlidingWindow
from gatework.masks.slices import Slice, Slices

__all__ = [
    "DOCUMENT_HISTOGRAM",
    "DOCUMENT_LENGTHS",
    "EMPTY",
    "FULL",
    "PARTIAL",
    "And",
    "AxisWindows",
    "BlockCausal",
    "BlockCausalDocument",
    "BlockSparse",
    "Causal",
    "CausalBlockwise",
    "CausalDocument",
    "CompressedBlocks",
    "Document",
    "Entry",
    "Full",
    "GlobalWindow",
    "Grid",
    "GridMask",
    "Halo",
    "Mask",
    "Neighborhood",
    "Not",
    "Or",
    "PrefixLM",
    "PrefixLMDocument",
    "QueryOffset",
    "RandomBlocks",
    "SharedQuestion",
    "Slice",
    "Slices",
    "SlidingWindow",
    "Windows",
    "log_normal_histogram",
    "sample_document_lengths",
]
