"""Parity and majority: tasks that need counting where the recall tasks need remembering.

The numbers are those of the authors' generators, bit for bit (github.com/HazyResearch/zoology).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int64

from gatework.checks import check_int, check_seed
from gatework.data.segment import IGNORED, TokenSegment

# The token that asks for the answer, after the bits 0 and 1.
_END = 2


@dataclass(frozen=True)
class CountingConfig:
    """What the settings of all counting tasks have in common.

    Attributes:
        num_examples: Number of examples.
        input_seq_len: Tokens per example, where there is one the end token included.

    Raises:
        TypeError: If a field is not an integer.
        ValueError: If a field is too small.
    """

    shortest: ClassVar[int] = 2

    num_examples: int = 1000
    input_seq_len: int = 64

    def __post_init__(self) -> None:
        check_int("num_examples", self.num_examples, at_least=1)
        check_int("input_seq_len", self.input_seq_len, at_least=self.shortest)

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {"input_seq_len": self.input_seq_len}


@dataclass(frozen=True)
class ParityConfig(CountingConfig):
    """Random bits and an end token (2), where the label is the parity of the ones."""

    vocab_size: ClassVar[int] = 3


@dataclass(frozen=True)
class MajorityConfig(CountingConfig):
    """Random bits and an end token (2), where the label says whether more than half are ones."""

    vocab_size: ClassVar[int] = 3


@dataclass(frozen=True)
class CumulativeParityConfig(CountingConfig):
    """Random bits, each labelled with the parity of the ones so far; ``input_seq_len - 1`` of them."""

    vocab_size: ClassVar[int] = 2


@dataclass(frozen=True)
class CumulativeMajorityConfig(CountingConfig):
    """Random bits, each labelled with whether at least half of those so far are ones."""

    vocab_size: ClassVar[int] = 2
    shortest: ClassVar[int] = 1

    input_seq_len: int = 16


@dataclass(frozen=True)
class VocabMajorityConfig(CountingConfig):
    """Random tokens ``1 .. vocab_size - 1`` and an end token (0), where the label is the most frequent one.

    Where several are most frequent, the smallest of them replaces one other token and wins.

    Attributes:
        vocab_size: Number of tokens, the end token included.
    """

    vocab_size: int = 8192

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("vocab_size", self.vocab_size, at_least=2)

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {"vocab_size": self.vocab_size, "input_seq_len": self.input_seq_len}


def make_parity(config: ParityConfig, seed: int) -> TokenSegment:
    """Make the examples of ``config``; the label at the end token is ``sum(bits) mod 2``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is not in ``0 .. 2**32 - 1``.
    """
    bits = _draw(seed, 0, 2, config.num_examples, config.input_seq_len - 1)
    return _ask_at_end(bits, _END, bits.sum(axis=1) % 2, config)


def make_majority(config: MajorityConfig, seed: int) -> TokenSegment:
    """Make the examples of ``config``; the label at the end token is 1 if ones outnumber zeros, else 0.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is not in ``0 .. 2**32 - 1``.
    """
    bits = _draw(seed, 0, 2, config.num_examples, config.input_seq_len - 1)
    return _ask_at_end(bits, _END, (2 * bits.sum(axis=1) > bits.shape[1]).astype(np.int64), config)


def make_vocab_majority(config: VocabMajorityConfig, seed: int) -> TokenSegment:
    """Make the examples of ``config``; the label at the end token is the most frequent token.

    Where several tokens are most frequent, the smallest of them wins: it takes the first place of the
    first token in the sequence that is not it.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is not in ``0 .. 2**32 - 1``.
    """
    tokens = _draw(seed, 1, config.vocab_size, config.num_examples, config.input_seq_len - 1)
    winners = np.empty(len(tokens), dtype=np.int64)
    for example, row in enumerate(tokens):
        counts = Counter(row.tolist())
        most = max(counts.values())
        tied = [token for token, count in counts.items() if count == most]
        winners[example] = min(tied)
        if len(tied) > 1:
            row[np.argmax(row != winners[example])] = winners[example]
    return _ask_at_end(tokens, 0, winners, config)


def make_cumulative_parity(config: CumulativeParityConfig, seed: int) -> TokenSegment:
    """Make the examples of ``config``; the label at ``t`` is ``sum(bits[:t + 1]) mod 2``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is not in ``0 .. 2**32 - 1``.
    """
    bits = _draw(seed, 0, 2, config.num_examples, config.input_seq_len - 1)
    labels = bits.cumsum(axis=1) % 2
    return TokenSegment(torch.from_numpy(bits), torch.from_numpy(labels), config.slices)


def make_cumulative_majority(config: CumulativeMajorityConfig, seed: int) -> TokenSegment:
    """Make the examples of ``config``; a label is 1 unless zeros outnumber ones in ``bits[:t + 1]``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is not in ``0 .. 2**32 - 1``.
    """
    bits = _draw(seed, 0, 2, config.num_examples, config.input_seq_len)
    labels = ((2 * bits - 1).cumsum(axis=1) >= 0).astype(np.int64)
    return TokenSegment(torch.from_numpy(bits), torch.from_numpy(labels), config.slices)


def _draw(seed: int, low: int, high: int, rows: int, length: int) -> Int64[np.ndarray, "rows length"]:
    """Draw numbers ``low .. high - 1``. One call for all rows gives the numbers of a call per row."""
    check_seed(seed)
    return np.random.RandomState(seed).randint(low, high, size=(rows, length), dtype=np.int64)


def _ask_at_end(
    tokens: Int64[np.ndarray, "rows length"],
    end: int,
    answers: Int64[np.ndarray, " rows"],
    config: CountingConfig,
) -> TokenSegment:
    """Add the end token to every row, and the answer as its label."""
    inputs = np.pad(tokens, ((0, 0), (0, 1)), constant_values=end)
    labels = np.full_like(inputs, IGNORED)
    labels[:, -1] = answers
    return TokenSegment(torch.from_numpy(inputs), torch.from_numpy(labels), config.slices)
