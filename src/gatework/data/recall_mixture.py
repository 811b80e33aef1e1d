"""Mixtures of task settings: training and test segments, and the batches a training loop reads.

A batch holds rows of one segment only, so all its sequences have one length. Nothing here depends on
global random state: two models that train on a mixture read the same data in the same order.
(Protocol of Zoology and Based, arXiv:2312.04927 and arXiv:2402.18668.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from gatework.checks import SEED_LIMIT, check_choice, check_compat, check_int, check_seed
from gatework.data import counting
from gatework.data.loader import ResumableLoader
from gatework.data.mqar import Mode, MQARConfig, make_mqar
from gatework.data.recall_variants import (
    CompositionalConfig,
    ForgettingConfig,
    make_compositional,
    make_forgetting,
)
from gatework.data.segment import TokenBatch, TokenSegment

#: Settings of the tasks on tokens, all of which can enter a mixture.
RecallConfig = (
    MQARConfig
    | CompositionalConfig
    | ForgettingConfig
    | counting.ParityConfig
    | counting.MajorityConfig
    | counting.VocabMajorityConfig
    | counting.CumulativeParityConfig
    | counting.CumulativeMajorityConfig
)
Compat = Literal["official"]
Split = Literal["train", "validation", "test"]

# Sets the generator of validation seeds apart from any other that starts from the mixture's seed.
_VALIDATION = 0x76616C69


@dataclass(frozen=True)
class RecallMixture:
    """Which settings to train and to test on, and in batches of what size.

    Attributes:
        train: Settings of the training segments, in the order they are read.
        test: Settings of the test segments.
        batch_size: Rows per batch, or one number for training and one for test.
        seed: Seed of everything; training and test segments get seeds from disjoint ranges.
        validation: Settings of the segments to choose by, which are read in batches of the test's size.

    Raises:
        TypeError: If a setting is of no known task, or a number is not an integer.
        ValueError: If there is nothing to train on, or a number is out of range.
    """

    train: Sequence[RecallConfig]
    test: Sequence[RecallConfig]
    batch_size: int | tuple[int, int] = 32
    seed: int = 123
    validation: Sequence[RecallConfig] = ()

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train must hold at least one setting, got none")
        for name in get_args(Split):
            for config in getattr(self, name):
                if not isinstance(config, RecallConfig):
                    raise TypeError(f"{name} must hold settings such as MQARConfig, got {config!r}")
        if not isinstance(self.batch_size, (int, tuple)):
            raise TypeError(f"batch_size must be a number or (train, test), got {self.batch_size!r}")
        if isinstance(self.batch_size, tuple) and len(self.batch_size) != 2:
            raise ValueError(f"batch_size must be a number or (train, test), got {self.batch_size!r}")
        for size in self.batch_sizes:
            check_int("batch_size", size, at_least=1)
        check_seed(self.seed)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Rows per batch in training and in test."""
        return (self.batch_size, self.batch_size) if isinstance(self.batch_size, int) else self.batch_size

    @property
    def vocab_size(self) -> int:
        """Tokens a model must know to read every segment."""
        return max(config.vocab_size for config in [*self.train, *self.validation, *self.test])

    @property
    def max_length(self) -> int:
        """Length of the longest sequences."""
        return max(config.input_seq_len for config in [*self.train, *self.validation, *self.test])

    @property
    def segment_seeds(self) -> tuple[list[int], list[int]]:
        """Seeds of the training segments (below ``2**31``) and of the test segments (from there on)."""
        rng = np.random.RandomState(self.seed)
        train = rng.randint(0, SEED_LIMIT // 2, size=len(self.train), dtype=np.int64)
        test = rng.randint(SEED_LIMIT // 2, SEED_LIMIT, size=len(self.test), dtype=np.int64)
        return train.tolist(), test.tolist()

    @property
    def validation_seeds(self) -> list[int]:
        """Seeds of the validation segments, from a generator of their own; no other segment has them."""
        rng = np.random.default_rng([self.seed, _VALIDATION])
        taken = {seed for seeds in self.segment_seeds for seed in seeds}
        seeds: list[int] = []
        while len(seeds) < len(self.validation):
            seed = int(rng.integers(SEED_LIMIT))
            if seed not in taken:
                taken.add(seed)
                seeds.append(seed)
        return seeds


class SegmentBatches(Dataset[TokenBatch]):
    """Whole batches of some segments, one segment after the other; the last batch of each may be short.

    Args:
        segments: The segments, in order.
        batch_size: Rows per batch.
        compat: ``"official"`` keeps the slice list of a short batch at full length, as the authors' does.

    Raises:
        ValueError: If ``batch_size`` is below 1, or ``compat`` is another word.
    """

    def __init__(
        self, segments: Sequence[TokenSegment], batch_size: int, *, compat: Compat | None = None
    ) -> None:
        check_int("batch_size", batch_size, at_least=1)
        check_compat(compat)
        self.segments = list(segments)
        self.batch_size = batch_size
        self.compat = compat
        self._starts = [
            (segment, start) for segment in self.segments for start in range(0, len(segment), batch_size)
        ]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> TokenBatch:
        segment, start = self._starts[index]
        rows = slice(start, start + self.batch_size)
        inputs = segment.inputs[rows]
        entries = self.batch_size if self.compat == "official" else len(inputs)
        return TokenBatch(inputs, segment.labels[rows], [segment.slices] * entries)


def make_recall(
    config: RecallConfig,
    seed: int,
    *,
    mode: Mode = "fast",
    compat: Compat | None = None,
    filler: torch.Generator | None = None,
) -> TokenSegment:
    """Make the examples of any task on tokens.

    Args:
        config: The setting, whose type says which task.
        seed: Seed of the segment, below 2**32.
        mode: Which generator makes MQAR; the other tasks have one, which gives the authors' numbers.
        compat: ``"official"`` repeats the error of the authors' forgetting task.
        filler: Generator of the filler tokens of recall tasks, except MQAR with ``mode="fast"``.

    Raises:
        TypeError: If ``config`` is of no known task, or ``seed`` is not an integer.
        ValueError: If an argument is out of range, or ``filler`` is given for MQAR with ``mode="fast"``.
    """
    check_choice("mode", mode, ("fast", "compat"))
    check_compat(compat)
    match config:
        case MQARConfig():
            return make_mqar(config, seed, mode=mode, filler=filler)
        case CompositionalConfig():
            return make_compositional(config, seed, filler=filler)
        case ForgettingConfig():
            return make_forgetting(config, seed, compat=compat, filler=filler)
        case counting.ParityConfig():
            return counting.make_parity(config, seed)
        case counting.MajorityConfig():
            return counting.make_majority(config, seed)
        case counting.VocabMajorityConfig():
            return counting.make_vocab_majority(config, seed)
        case counting.CumulativeParityConfig():
            return counting.make_cumulative_parity(config, seed)
        case counting.CumulativeMajorityConfig():
            return counting.make_cumulative_majority(config, seed)
    raise TypeError(f"config must be a setting such as MQARConfig, got {config!r}")


def make_split(
    mixture: RecallMixture, split: Split, *, mode: Mode = "fast", compat: Compat | None = None
) -> SegmentBatches:
    """Make the batches of one split of ``mixture``.

    Args:
        mixture: The settings.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        mode: Which generator makes MQAR, see :func:`~gatework.data.mqar.make_mqar`.
        compat: ``"official"`` repeats the authors' errors: full-length slice lists of short batches, and
            their forgetting task.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_choice("split", split, get_args(Split))
    train_seeds, test_seeds = mixture.segment_seeds
    configs, seeds, size = {
        "train": (mixture.train, train_seeds, mixture.batch_sizes[0]),
        "validation": (mixture.validation, mixture.validation_seeds, mixture.batch_sizes[1]),
        "test": (mixture.test, test_seeds, mixture.batch_sizes[1]),
    }[split]
    segments = [
        make_recall(config, seed, mode=mode, compat=compat)
        for config, seed in zip(configs, seeds, strict=True)
    ]
    return SegmentBatches(segments, size, compat=compat)


def batch_loader(batches: SegmentBatches, *, shuffle_seed: int | None = None) -> ResumableLoader[TokenBatch]:
    """Load whole batches, for a training loop or a Lightning trainer.

    Args:
        batches: From :func:`make_split`.
        shuffle_seed: Seed of a new order of the batches every epoch; None reads them in order, as the
            authors do. Rows never change their batch.

    Returns:
        A loader of :class:`TokenBatch` that neither reads nor moves the global random state.
    """
    return ResumableLoader(batches, seed=shuffle_seed or 0, shuffle=shuffle_seed is not None)
