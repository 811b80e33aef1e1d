"""Where the queries of a recall segment fall: the statistics by which two generators are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from gatework.data.mqar import MQARConfig
from gatework.data.sampling import slot_probabilities
from gatework.data.segment import IGNORED, TokenSegment


@dataclass(frozen=True, eq=False)
class MQARStatistics:
    """Counts over the queries of one segment.

    Attributes:
        slot_histogram: How often pair ``i`` of the context was asked for in slot ``j``.
        distance_histogram: How often a query stood ``t`` tokens after its key was last read.
        slot_probabilities: The law of a slot drawn alone, hence of the first pair's slot.
        num_labels: Number of scored positions.
    """

    slot_histogram: Int64[np.ndarray, "pairs slots"]
    distance_histogram: Int64[np.ndarray, " length"]
    slot_probabilities: Float64[np.ndarray, " slots"]
    num_labels: int


def mqar_statistics(segment: TokenSegment, config: MQARConfig) -> MQARStatistics:
    """Count slots and distances of the queries in ``segment``, which was made from ``config``.

    Raises:
        ValueError: If the segment has another length than ``config``, or asks for a key that is not among
            the pairs it read.
    """
    inputs, labels = segment.inputs.numpy(), segment.labels.numpy()
    if inputs.shape[1] != config.input_seq_len:
        raise ValueError(
            f"segment must have length {config.input_seq_len} as config says, got {inputs.shape[1]}"
        )
    row, position = np.nonzero(labels != IGNORED)
    last_pass = config.context_length - 2 * config.num_kv_pairs
    keys = inputs[row, last_pass : config.context_length : 2]
    asked = keys == inputs[row, position][:, None]
    slot, between = np.divmod(position - config.context_length, 2)
    if not asked.any(axis=1).all() or between.any() or (slot < 0).any():
        raise ValueError("segment must ask only for keys of its context, in the slots of config")
    pair = asked.argmax(axis=1)
    slot_histogram = np.zeros((config.num_kv_pairs, config.num_slots), dtype=np.int64)
    np.add.at(slot_histogram, (pair, slot), 1)
    distance = position - (last_pass + 2 * pair)
    return MQARStatistics(
        slot_histogram=slot_histogram,
        distance_histogram=np.bincount(distance, minlength=config.input_seq_len).astype(np.int64),
        slot_probabilities=slot_probabilities(config.num_slots, config.power_a),
        num_labels=len(row),
    )
