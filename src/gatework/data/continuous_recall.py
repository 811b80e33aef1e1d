"""Recall on vectors: MQAR whose keys and values are given embeddings, scored against the values.

The numbers are those of the authors' generator, bit for bit (github.com/HazyResearch/zoology).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gatework.checks import check_bool, check_int, check_seed
from gatework.data.segment import EmbeddedSegment


@dataclass(frozen=True)
class ContinuousConfig:
    """MQAR on vectors: a token is a key's vector beside its value's, or beside zeros when it is asked for.

    Attributes:
        num_examples: Number of examples.
        num_kv_pairs: Different keys per example; each is asked for once.
        num_passes: How often the pairs are read, each time in a new order.
        per_sequence_mapping: Whether every example pairs its chosen keys and values anew, or all of them
            by the permutation drawn for the first.

    Raises:
        TypeError: If a field has the wrong type.
        ValueError: If a number is below 1.
    """

    num_examples: int = 1000
    num_kv_pairs: int = 8
    num_passes: int = 1
    per_sequence_mapping: bool = True

    def __post_init__(self) -> None:
        check_int("num_examples", self.num_examples, at_least=1)
        check_int("num_kv_pairs", self.num_kv_pairs, at_least=1)
        check_int("num_passes", self.num_passes, at_least=1)
        check_bool("per_sequence_mapping", self.per_sequence_mapping)

    @property
    def slices(self) -> dict[str, int]:
        """What scores by slice call this setting."""
        return {"num_kv_pairs": self.num_kv_pairs, "num_passes": self.num_passes}


def make_continuous(
    config: ContinuousConfig, seed: int, embeddings: Float[Tensor, "tokens channels"]
) -> EmbeddedSegment:
    """Make the examples of ``config`` from given vectors.

    Args:
        config: The setting.
        seed: Seed of torch's generator.
        embeddings: Vectors of the keys (first half of the rows) and of the values (second half).

    Returns:
        Inputs of length ``(num_passes + 1) * num_kv_pairs`` and width ``2 * channels``; labels count the
        values within their half.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is out of range, or a half has fewer vectors than there are pairs.
    """
    check_seed(seed)
    half, pairs = embeddings.shape[0] // 2, config.num_kv_pairs
    if half < pairs:
        raise ValueError(
            f"embeddings must have at least 2 * num_kv_pairs={2 * pairs} rows, got {embeddings.shape[0]}"
        )
    generator = torch.Generator().manual_seed(seed)

    def shuffled(count: int) -> Int64[Tensor, " count"]:
        return torch.randperm(count, generator=generator)

    key_rows, value_rows = [], []
    for example in range(config.num_examples):
        keys, values = shuffled(half)[:pairs], shuffled(half)[:pairs]
        if config.per_sequence_mapping or example == 0:
            mapping = shuffled(pairs)
        order = torch.cat([shuffled(pairs) for _ in range(config.num_passes + 1)])
        key_rows.append(keys[order])
        value_rows.append(values[mapping][order])
    keys, values = torch.stack(key_rows), torch.stack(value_rows)
    shown = embeddings[half:][values]
    shown[:, -pairs:] = 0
    inputs = torch.cat([embeddings[:half][keys], shown], dim=2)
    return EmbeddedSegment(inputs, values[:, -pairs:].clone(), config.slices)
