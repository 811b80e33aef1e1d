"""Where things stand in a recall example: a context to remember, then queries in slots, filler between.

Shared by multi-query associative recall and the task variants made from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from gatework.checks import check_int
from gatework.data.sampling import filler_tokens
from gatework.data.segment import IGNORED


def check_recall_fields(vocab_size: int, num_examples: int, input_seq_len: int, num_kv_pairs: int) -> None:
    """Check the four numbers that every recall task has.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is too small, the length is odd, or the vocabulary is no larger than the length.
    """
    check_int("vocab_size", vocab_size, at_least=1)
    check_int("num_examples", num_examples, at_least=1)
    check_int("input_seq_len", input_seq_len, at_least=2)
    check_int("num_kv_pairs", num_kv_pairs, at_least=1)
    if input_seq_len % 2:
        raise ValueError(f"input_seq_len must be even, got {input_seq_len}")
    if vocab_size <= input_seq_len:
        raise ValueError(f"vocab_size must exceed input_seq_len={input_seq_len}, got {vocab_size}")


def check_room(input_seq_len: int, needed: int, for_what: str) -> None:
    """Check that context and queries fit.

    With a vocabulary above the length this also leaves enough keys and values to choose from.

    Raises:
        ValueError: If they need more than ``input_seq_len`` tokens.
    """
    if needed > input_seq_len:
        raise ValueError(f"{for_what} needs input_seq_len of at least {needed}, got {input_seq_len}")


def blank_examples(
    rows: int,
    length: int,
    vocab_size: int,
    seed: int,
    *,
    random_non_queries: bool,
    filler: torch.Generator | None,
) -> tuple[Int64[Tensor, "rows length"], Int64[Tensor, "rows length"]]:
    """Return inputs of filler (or 0) and labels that score nothing, to be written over."""
    labels = torch.full((rows, length), IGNORED)
    if random_non_queries:
        return filler_tokens(vocab_size, rows, length, seed, filler), labels
    return torch.zeros((rows, length), dtype=torch.int64), labels


def write_context(
    inputs: Int64[np.ndarray, "rows length"], columns: Sequence[Int64[np.ndarray, "rows pairs"]], *, at: int
) -> int:
    """Write the first of every column, then the second of every column, and so on: ``k1 v1 k2 v2 ...``.

    Args:
        inputs: Written over.
        columns: Tokens of one kind each.
        at: Position to begin at.

    Returns:
        The position after what was written.
    """
    width = len(columns)
    end = at + width * int(columns[0].shape[1])
    for offset, tokens in enumerate(columns):
        inputs[:, at + offset : end : width] = tokens
    return end


def write_queries(
    inputs: Int64[np.ndarray, "rows length"],
    labels: Int64[np.ndarray, "rows length"],
    columns: Sequence[Int64[np.ndarray, "rows pairs"]],
    answers: Int64[np.ndarray, "rows pairs"],
    slots: Int64[np.ndarray, "rows pairs"],
    *,
    at: int,
) -> None:
    """Write every query into its slot, and its answer as the label of the query's last token.

    Args:
        inputs: Written over; contiguous.
        labels: Written over; contiguous.
        columns: The first token of every query, then the second where there is one, and so on.
        answers: The label of every query.
        slots: Where each query goes; a slot is one token wider than a query.
        at: Position of slot 0.
    """
    assert inputs.flags.c_contiguous
    assert labels.flags.c_contiguous
    rows, length = inputs.shape
    # One index into the flat array takes half the time of `np.put_along_axis`, which builds two.
    index = slots * (len(columns) + 1)
    index += np.arange(rows)[:, None] * length + (at - 1)
    for tokens in columns:
        index += 1
        inputs.reshape(-1)[index] = tokens
    labels.reshape(-1)[index] = answers
