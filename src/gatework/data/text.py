"""Text for language modelling without document borders: random crops, and windows one after another.

A stretch may run over the end of a document, which is a token like the others.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int64, UInt
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gatework.checks import check_int, check_seed
from gatework.data.tokens import Split, TokenCorpus


class TextCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random stretches of the training split: item ``i`` follows from ``(seed, i)`` alone.

    Each item is ``length`` tokens and, as labels, the token after each.

    Args:
        corpus: Where to cut from.
        length: Tokens per example.
        num_examples: Number of items.
        seed: Seed of the places to cut at.

    Raises:
        ValueError: If a number is out of range, or the split is shorter than ``length + 1``.
    """

    def __init__(self, corpus: TokenCorpus, length: int, *, num_examples: int, seed: int) -> None:
        check_int("num_examples", num_examples, at_least=0)
        check_seed(seed)
        self.tokens = _checked(corpus, "train", length)
        self.length = length
        self.num_examples = num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"index must be in 0 .. {self.num_examples - 1}, got {index}")
        # Hashing (seed, index) needs no generator to be carried or restored, in any order, in any worker.
        hashed = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0]
        return _example(self.tokens, int(hashed) % (len(self.tokens) - self.length), self.length)


class TextWindows(Dataset[tuple[Tensor, Tensor]]):
    """The stretches of a split one after another, each token the label of at most one position.

    Fewer than ``length`` tokens at the end are left out.

    Args:
        corpus: Where to cut from.
        length: Tokens per example.
        split: Which split.

    Raises:
        ValueError: If ``length`` is below 1, there is no such split, or it is shorter than ``length + 1``.
    """

    def __init__(self, corpus: TokenCorpus, length: int, *, split: Split = "validation") -> None:
        self.tokens = _checked(corpus, split, length)
        self.length = length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        return _example(self.tokens, index * self.length, self.length)


def spread_evenly(data: Dataset[tuple[Tensor, ...]], count: int) -> Subset[tuple[Tensor, ...]]:
    """Return ``count`` items of a sized data set, evenly spread over it; all if it has no more."""
    size = len(data)  # type: ignore[arg-type]
    kept = min(count, size)
    return Subset(data, [i * size // kept for i in range(kept)])


def _checked(corpus: TokenCorpus, split: Split, length: int) -> UInt[np.ndarray, " tokens"]:
    check_int("length", length, at_least=1)
    tokens = corpus.split(split).tokens
    if len(tokens) <= length:
        raise ValueError(
            f"length must be below the {len(tokens)} tokens of the {split} split of {corpus.name}, "
            f"got {length}"
        )
    return tokens


def _example(
    tokens: UInt[np.ndarray, " tokens"], start: int, length: int
) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
    """Cut out inputs, and labels one token further on."""
    cut = torch.from_numpy(tokens[start : start + length + 1].astype(np.int64))
    return cut[:-1], cut[1:]
