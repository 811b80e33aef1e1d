import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data.counting import (
    CumulativeMajorityConfig,
    CumulativeParityConfig,
    MajorityConfig,
    ParityConfig,
    VocabMajorityConfig,
    make_cumulative_majority,
    make_cumulative_parity,
    make_majority,
    make_parity,
    make_vocab_majority,
)
from gatework.data.segment import IGNORED

sizes = {"rows": st.integers(1, 5), "length": st.integers(2, 19), "seed": st.integers(0, 2**32 - 1)}


def draws(seed, low, high, rows, length):
    """The authors' draws: one call per example, on one stream."""
    rng = np.random.RandomState(seed)
    return [rng.randint(low, high, size=length).tolist() for _ in range(rows)]


def only_last(segment):
    """The labels at the end token, after checking that there are no others."""
    assert (segment.labels[:, :-1] == IGNORED).all()
    return segment.labels[:, -1].tolist()


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_parity_and_majority_of_bits(rows, length, seed):
    expected = draws(seed, 0, 2, rows, length - 1)
    parity = make_parity(ParityConfig(rows, length), seed)
    majority = make_majority(MajorityConfig(rows, length), seed)
    assert parity.inputs.tolist() == majority.inputs.tolist() == [[*bits, 2] for bits in expected]
    assert only_last(parity) == [sum(bits) % 2 for bits in expected]
    assert only_last(majority) == [int(sum(bits) > bits.count(0)) for bits in expected]


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_cumulative_labels_see_the_prefix(rows, length, seed):
    parity = make_cumulative_parity(CumulativeParityConfig(rows, length), seed)
    assert parity.inputs.tolist() == draws(seed, 0, 2, rows, length - 1)
    for bits, labels in zip(parity.inputs.tolist(), parity.labels.tolist(), strict=True):
        assert labels == [sum(bits[: t + 1]) % 2 for t in range(length - 1)]
    majority = make_cumulative_majority(CumulativeMajorityConfig(rows, length), seed)
    assert majority.inputs.shape == (rows, length)
    for bits, labels in zip(majority.inputs.tolist(), majority.labels.tolist(), strict=True):
        prefixes = [bits[: t + 1] for t in range(length)]
        assert labels == [int(prefix.count(1) >= prefix.count(0)) for prefix in prefixes]


@settings(max_examples=60, deadline=None)
@given(vocab_size=st.integers(2, 9), **sizes)
def test_one_token_is_most_frequent(vocab_size, rows, length, seed):
    segment = make_vocab_majority(VocabMajorityConfig(rows, length, vocab_size), seed)
    expected = draws(seed, 1, vocab_size, rows, length - 1)
    assert (segment.inputs[:, -1] == 0).all()
    for drawn, inputs, winner in zip(
        expected, segment.inputs[:, :-1].tolist(), only_last(segment), strict=True
    ):
        most = max(map(drawn.count, drawn))
        tied = {token for token in drawn if drawn.count(token) == most}
        assert winner == min(tied)
        changed = [t for t in range(length - 1) if drawn[t] != inputs[t]]
        if len(tied) == 1:
            assert not changed
        else:
            assert changed == [next(t for t in range(length - 1) if drawn[t] != winner)]
            assert inputs[changed[0]] == winner
            assert all(inputs.count(other) < inputs.count(winner) for other in set(inputs) - {winner})


def test_settings_say_what_a_model_must_know():
    assert [c.vocab_size for c in (ParityConfig(), MajorityConfig(), CumulativeParityConfig())] == [3, 3, 2]
    assert VocabMajorityConfig(vocab_size=7).slices == {"vocab_size": 7, "input_seq_len": 64}
    assert CumulativeMajorityConfig().slices == {"input_seq_len": 16}


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    for config in (ParityConfig, MajorityConfig, CumulativeParityConfig, VocabMajorityConfig):
        with pytest.raises(ValueError, match="input_seq_len must be at least 2, got 1"):
            config(input_seq_len=1)
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        CumulativeMajorityConfig(num_examples=0)
    with pytest.raises(ValueError, match="vocab_size must be at least 2, got 1"):
        VocabMajorityConfig(vocab_size=1)
    with pytest.raises(ValueError, match=r"seed must be below 2\*\*32, got 4294967296"):
        make_parity(ParityConfig(), 2**32)
