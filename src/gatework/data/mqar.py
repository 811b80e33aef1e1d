"""Multi-query associative recall (MQAR): read key-value pairs, then give the value of each key asked for.

::

    pairs:  k1 v1 k2 v2            queries, the rest is filler
    inputs:  2  8  4  7  0  0  4  0  0  0  2  0
    labels:  .  .  .  .  .  .  7  .  .  .  8  .

How well a sequence model solves it predicts how well the same model recalls in real text.
(Arora et al., Zoology, arXiv:2312.04927, section 4 and appendix.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64, Int64

from gatework.checks import check_bool, check_choice, check_int, check_seed
from gatework.data.recall_layout import (
    blank_examples,
    check_recall_fields,
    check_room,
    write_context,
    write_queries,
)
from gatework.data.sampling import (
    choice_rows,
    distinct_rows,
    integers_below,
    slot_probabilities,
    successive_rows,
)
from gatework.data.segment import IGNORED, TokenSegment

#: ``fast`` is vectorised; ``compat`` gives the very numbers of the authors' generator.
Mode = Literal["fast", "compat"]

# `mqar_fast` makes so many tokens at a time: a block and its draws stay in the processor's cache.
_BLOCK_TOKENS = 2**17


@dataclass(frozen=True)
class MQARConfig:
    """One setting of multi-query associative recall.

    Keys are tokens ``1 .. vocab_size // 2 - 1``, values the tokens from ``vocab_size // 2`` on; 0 marks
    places to fill.

    Attributes:
        vocab_size: Number of tokens, more than ``input_seq_len``.
        num_examples: Number of examples.
        input_seq_len: Tokens per example, an even number.
        num_kv_pairs: Different keys per example; each is asked for once.
        power_a: Exponent of the gaps: slot ``j = 1, 2, ...`` after the pairs is asked in proportion to
            ``power_a * j ** (power_a - 1)``. 1 is uniform, small values ask soon.
        num_passes: How often the list of pairs is read before the queries, each time in the same order.
        random_non_queries: Whether the places to fill get random tokens (keys and values among them)
            instead of 0.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a field is out of range, or the pairs and their queries do not fit.
    """

    vocab_size: int = 8192
    num_examples: int = 1000
    input_seq_len: int = 64
    num_kv_pairs: int = 8
    power_a: float = 0.01
    num_passes: int = 1
    random_non_queries: bool = True

    def __post_init__(self) -> None:
        check_int("num_passes", self.num_passes, at_least=1)
        check_recall_fields(self.vocab_size, self.num_examples, self.input_seq_len, self.num_kv_pairs)
        needed = self.context_length + 2 * self.num_kv_pairs
        passes = f" with num_passes={self.num_passes}" if self.num_passes > 1 else ""
        check_room(self.input_seq_len, needed, f"num_kv_pairs={self.num_kv_pairs}{passes}")
        check_bool("random_non_queries", self.random_non_queries)
        slot_probabilities(self.num_slots, self.power_a)

    @property
    def context_length(self) -> int:
        """Tokens before the first slot: all passes over the pairs."""
        return 2 * self.num_kv_pairs * self.num_passes

    @property
    def num_slots(self) -> int:
        """Places a query can take: every second position after the context."""
        return (self.input_seq_len - self.context_length) // 2

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {
            "num_kv_pairs": self.num_kv_pairs,
            "input_seq_len": self.input_seq_len,
            "num_passes": self.num_passes,
        }


def make_mqar(
    config: MQARConfig, seed: int, *, mode: Mode = "fast", filler: torch.Generator | None = None
) -> TokenSegment:
    """Make the examples of ``config``; they depend on the arguments and on no global state.

    Args:
        config: The setting.
        seed: Seed of everything random, below 2**32.
        mode: ``"fast"`` for :func:`mqar_fast`, ``"compat"`` for :func:`mqar_compat`: the same law, other
            numbers.
        filler: Only with ``mode="compat"``: where the filler tokens come from; see :func:`mqar_compat`.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If ``seed`` or ``mode`` is out of range, or ``filler`` is given for ``mode="fast"``.
    """
    check_choice("mode", mode, ("fast", "compat"))
    if mode == "compat":
        return mqar_compat(config, seed, filler=filler)
    if filler is not None:
        raise ValueError("filler is for mode='compat' only: mode='fast' draws all its tokens from seed")
    return mqar_fast(config, seed)


def mqar_compat(config: MQARConfig, seed: int, *, filler: torch.Generator | None = None) -> TokenSegment:
    """Make the examples with the numbers of the authors' generator, bit for bit, row by row.

    Keys of all rows are drawn first, then all values, then all slots, from numpy's legacy generator.
    The authors' code fails for ``num_passes > 1``; here the context is then the pairs repeated.

    Args:
        config: The setting.
        seed: Seed of numpy's legacy generator, below 2**32.
        filler: Generator of the filler tokens; ``torch.Generator().manual_seed(s)`` equals the authors'
            global ``torch.manual_seed(s)``. Without it they follow from ``seed``.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is out of range.
    """
    check_seed(seed)
    rng = np.random.RandomState(seed)
    rows, pairs = config.num_examples, config.num_kv_pairs
    half = config.vocab_size // 2
    keys = choice_rows(rng, np.arange(1, half), rows, pairs)
    values = choice_rows(rng, np.arange(half, config.vocab_size), rows, pairs)
    p = slot_probabilities(config.num_slots, config.power_a)
    slots = choice_rows(rng, config.num_slots, rows, pairs, p)
    inputs, labels = blank_examples(
        rows,
        config.input_seq_len,
        config.vocab_size,
        seed,
        random_non_queries=config.random_non_queries,
        filler=filler,
    )
    _write(inputs.numpy(), labels.numpy(), keys, values, slots, config.num_passes)
    return TokenSegment(inputs, labels, config.slices)


def mqar_fast(config: MQARConfig, seed: int) -> TokenSegment:
    """Make examples that follow the law of :func:`mqar_compat`, 50 and more times as fast.

    The numbers are reproducible for one version of numpy, whose newer generators may change between
    versions.

    Args:
        config: The setting.
        seed: Seed, below 2**32.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is out of range.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    p = slot_probabilities(config.num_slots, config.power_a)
    inputs, labels = np.empty((2, config.num_examples, config.input_seq_len), dtype=np.int64)
    step = max(1, _BLOCK_TOKENS // config.input_seq_len)
    for start in range(0, config.num_examples, step):
        block = slice(start, start + step)
        _make_block(config, p, rng, inputs[block], labels[block])
    return TokenSegment(torch.from_numpy(inputs), torch.from_numpy(labels), config.slices)


def _make_block(
    config: MQARConfig,
    p: Float64[np.ndarray, " slots"],
    rng: np.random.Generator,
    inputs: Int64[np.ndarray, "rows length"],
    labels: Int64[np.ndarray, "rows length"],
) -> None:
    """Make some examples in place."""
    rows, pairs, half = len(inputs), config.num_kv_pairs, config.vocab_size // 2
    keys, values = distinct_rows(rng, [(1, half), (half, config.vocab_size)], rows, pairs)
    slots = successive_rows(rng, p, rows, pairs)
    after_context = inputs[:, config.context_length :]
    if config.random_non_queries:
        after_context[:] = integers_below(rng, config.vocab_size, *after_context.shape)
    else:
        after_context[:] = 0
    labels.fill(IGNORED)
    _write(inputs, labels, keys, values, slots, config.num_passes)


def _write(
    inputs: Int64[np.ndarray, "rows length"],
    labels: Int64[np.ndarray, "rows length"],
    keys: Int64[np.ndarray, "rows pairs"],
    values: Int64[np.ndarray, "rows pairs"],
    slots: Int64[np.ndarray, "rows pairs"],
    num_passes: int,
) -> None:
    """Write the pairs ``num_passes`` times, then every key in its slot, in place."""
    at = 0
    for _ in range(num_passes):
        at = write_context(inputs, [keys, values], at=at)
    write_queries(inputs, labels, [keys], values, slots, at=at)
