"""Recall tasks made from MQAR: keys of two tokens, and keys that change their value.

The numbers are those of the authors' generators, bit for bit (github.com/HazyResearch/zoology), drawn row
by row from a private generator in the authors' order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from gatework.checks import check_bool, check_compat, check_int, check_seed
from gatework.data.recall_layout import (
    blank_examples,
    check_recall_fields,
    check_room,
    write_context,
    write_queries,
)
from gatework.data.sampling import choice_rows, slot_probabilities
from gatework.data.segment import TokenSegment


@dataclass(frozen=True)
class CompositionalConfig:
    """MQAR whose keys are two tokens, of which neither tells the value alone.

    ``g * g`` pairs combine ``g`` first with ``g`` second key tokens. The vocabulary is split in thirds:
    first key tokens (without 0), second key tokens, values.

    Attributes:
        vocab_size: Number of tokens, more than ``input_seq_len``.
        num_examples: Number of examples.
        input_seq_len: Tokens per example, even, at least ``6 * num_kv_pairs``.
        num_kv_pairs: Key-value pairs per example, a square number.
        power_a: Exponent of the gaps, as in :class:`~gatework.data.mqar.MQARConfig`.
        random_non_queries: Whether the places to fill get random tokens instead of 0.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field is out of range, or the pairs and their queries do not fit.
    """

    vocab_size: int = 8192
    num_examples: int = 1000
    input_seq_len: int = 64
    num_kv_pairs: int = 4
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        check_recall_fields(self.vocab_size, self.num_examples, self.input_seq_len, self.num_kv_pairs)
        if math.isqrt(self.num_kv_pairs) ** 2 != self.num_kv_pairs:
            raise ValueError(f"num_kv_pairs must be a square number (1, 4, 9, ...), got {self.num_kv_pairs}")
        check_room(self.input_seq_len, 6 * self.num_kv_pairs, f"num_kv_pairs={self.num_kv_pairs}")
        check_bool("random_non_queries", self.random_non_queries)
        slot_probabilities(self.num_slots, self.power_a)

    @property
    def num_slots(self) -> int:
        """Places a query can take: every third position after the context."""
        return (self.input_seq_len - 3 * self.num_kv_pairs) // 3

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {"num_kv_pairs": self.num_kv_pairs, "input_seq_len": self.input_seq_len}


def make_compositional(
    config: CompositionalConfig, seed: int, *, filler: torch.Generator | None = None
) -> TokenSegment:
    """Make the examples of ``config``: ``k1 k2 v`` per pair, then ``k1 k2`` per query, label ``v`` at ``k2``.

    Args:
        config: The setting.
        seed: Seed of numpy's legacy generator, below 2**32.
        filler: Generator of the filler tokens; without it they follow from ``seed``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is out of range.
    """
    check_seed(seed)
    rng = np.random.RandomState(seed)
    rows, pairs = config.num_examples, config.num_kv_pairs
    third, side = config.vocab_size // 3, math.isqrt(config.num_kv_pairs)
    first = np.repeat(choice_rows(rng, np.arange(1, third), rows, side), side, axis=1)
    second = np.tile(choice_rows(rng, np.arange(third, 2 * third), rows, side), (1, side))
    order = np.stack([rng.permutation(pairs) for _ in range(rows)])
    first = np.take_along_axis(first, order, axis=1)
    second = np.take_along_axis(second, order, axis=1)
    values = choice_rows(rng, np.arange(2 * third, config.vocab_size), rows, pairs)
    p = slot_probabilities(config.num_slots, config.power_a)
    slots = choice_rows(rng, config.num_slots, rows, pairs, p)

    inputs, labels = _blank(config, seed, filler)
    at = write_context(inputs.numpy(), [first, second, values], at=0)
    write_queries(inputs.numpy(), labels.numpy(), [first, second], values, slots, at=at)
    return TokenSegment(inputs, labels, config.slices)


@dataclass(frozen=True)
class ForgettingConfig:
    """MQAR in which some keys get a new value before the queries; the last value is asked for.

    Attributes:
        vocab_size: Number of tokens, more than ``input_seq_len``.
        num_examples: Number of examples.
        input_seq_len: Tokens per example, even, at least ``4 * num_kv_pairs + 2 * num_updates``.
        num_kv_pairs: Different keys per example; each is asked for once.
        num_updates: How many of them get a new value, different from the old one.
        power_a: Exponent of the gaps, as in :class:`~gatework.data.mqar.MQARConfig`.
        random_non_queries: Whether the places to fill get random tokens instead of 0.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field is out of range, or the pairs and their queries do not fit.
    """

    vocab_size: int = 8192
    num_examples: int = 1000
    input_seq_len: int = 64
    num_kv_pairs: int = 8
    num_updates: int = 4
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        check_recall_fields(self.vocab_size, self.num_examples, self.input_seq_len, self.num_kv_pairs)
        check_int("num_updates", self.num_updates, at_least=0)
        if self.num_updates > self.num_kv_pairs:
            raise ValueError(
                f"num_updates must be at most num_kv_pairs={self.num_kv_pairs}, got {self.num_updates}"
            )
        needed = self.context_length + 2 * self.num_kv_pairs
        what = f"num_kv_pairs={self.num_kv_pairs} with num_updates={self.num_updates}"
        check_room(self.input_seq_len, needed, what)
        check_bool("random_non_queries", self.random_non_queries)
        slot_probabilities(self.num_slots, self.power_a)

    @property
    def context_length(self) -> int:
        """Tokens before the first slot: the pairs and the updates."""
        return 2 * (self.num_kv_pairs + self.num_updates)

    @property
    def num_slots(self) -> int:
        """Places a query can take: every second position after the context."""
        return (self.input_seq_len - self.context_length) // 2

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {
            "num_kv_pairs": self.num_kv_pairs,
            "num_updates": self.num_updates,
            "input_seq_len": self.input_seq_len,
        }


def make_forgetting(
    config: ForgettingConfig,
    seed: int,
    *,
    compat: Literal["official"] | None = None,
    filler: torch.Generator | None = None,
) -> TokenSegment:
    """Make the examples of ``config``: all pairs, then the updated pairs, then a query for every key.

    Args:
        config: The setting.
        seed: Seed of numpy's legacy generator, below 2**32.
        compat: ``"official"`` repeats an error of the authors: the new value of update ``j`` differs from
            the old value of key ``j`` instead of the key it updates, so that some updates change nothing.
            The default draws the same random numbers and keeps new and old value apart.
        filler: Generator of the filler tokens; without it they follow from ``seed``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If ``seed`` or ``compat`` is out of range.
    """
    check_seed(seed)
    check_compat(compat)
    rng = np.random.RandomState(seed)
    rows, pairs, updates = config.num_examples, config.num_kv_pairs, config.num_updates
    half = config.vocab_size // 2
    keys = choice_rows(rng, np.arange(1, half), rows, pairs)
    old = choice_rows(rng, np.arange(half, config.vocab_size), rows, pairs)
    # The rank of each new value among the values that are left when the old one is taken out.
    rank = rng.randint(0, config.vocab_size - half - 1, size=(rows, updates), dtype=np.int64)
    updated = choice_rows(rng, pairs, rows, updates)
    p = slot_probabilities(config.num_slots, config.power_a)
    slots = choice_rows(rng, config.num_slots, rows, pairs, p)

    avoided = old[:, :updates] if compat == "official" else np.take_along_axis(old, updated, axis=1)
    new = half + rank
    new += new >= avoided
    final = old.copy()
    np.put_along_axis(final, updated, new, axis=1)

    inputs, labels = _blank(config, seed, filler)
    at = write_context(inputs.numpy(), [keys, old], at=0)
    at = write_context(inputs.numpy(), [np.take_along_axis(keys, updated, axis=1), new], at=at)
    write_queries(inputs.numpy(), labels.numpy(), [keys], final, slots, at=at)
    return TokenSegment(inputs, labels, config.slices)


def _blank(
    config: CompositionalConfig | ForgettingConfig, seed: int, filler: torch.Generator | None
) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows length"]]:
    return blank_examples(
        config.num_examples,
        config.input_seq_len,
        config.vocab_size,
        seed,
        random_non_queries=config.random_non_queries,
        filler=filler,
    )
