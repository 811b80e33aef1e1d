import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data.recall_variants import (
    CompositionalConfig,
    ForgettingConfig,
    make_compositional,
    make_forgetting,
)
from gatework.data.segment import IGNORED


@st.composite
def compositional(draw):
    pairs = draw(st.sampled_from([1, 4, 9]))
    length = 6 * pairs + 2 * draw(st.integers(0, 9))
    return CompositionalConfig(
        vocab_size=length + draw(st.integers(1, 60)),
        num_examples=draw(st.integers(1, 4)),
        input_seq_len=length,
        num_kv_pairs=pairs,
        power_a=draw(st.sampled_from([0.01, 1.0])),
        random_non_queries=draw(st.booleans()),
    )


@st.composite
def forgetting(draw):
    pairs = draw(st.integers(1, 8))
    updates = draw(st.integers(0, pairs))
    length = 4 * pairs + 2 * updates + 2 * draw(st.integers(0, 9))
    return ForgettingConfig(
        vocab_size=length + draw(st.integers(1, 60)),
        num_examples=draw(st.integers(1, 4)),
        input_seq_len=length,
        num_kv_pairs=pairs,
        num_updates=updates,
        random_non_queries=draw(st.booleans()),
    )


@settings(max_examples=50, deadline=None)
@given(config=compositional(), seed=st.integers(0, 2**32 - 1))
def test_two_tokens_make_a_key(config, seed):
    segment = make_compositional(config, seed)
    third, side, context = config.vocab_size // 3, round(config.num_kv_pairs**0.5), 3 * config.num_kv_pairs
    for inputs, labels in zip(segment.inputs.tolist(), segment.labels.tolist(), strict=True):
        first, second, values = inputs[0:context:3], inputs[1:context:3], inputs[2:context:3]
        assert len(set(first)) == len(set(second)) == side
        memory = dict(zip(zip(first, second, strict=True), values, strict=True))
        assert len(memory) == len(set(values)) == config.num_kv_pairs
        assert all(1 <= k1 < third <= k2 < 2 * third <= v for (k1, k2), v in memory.items())
        scored = [t for t, label in enumerate(labels) if label != IGNORED]
        asked = [(inputs[t - 1], inputs[t]) for t in scored]
        assert sorted(asked) == sorted(memory)
        assert [labels[t] for t in scored] == [memory[key] for key in asked]
        assert all(t > context and (t - context) % 3 == 1 for t in scored)


@settings(max_examples=50, deadline=None)
@given(config=forgetting(), seed=st.integers(0, 2**32 - 1))
def test_the_last_value_counts(config, seed):
    segment = make_forgetting(config, seed)
    old_end, context = 2 * config.num_kv_pairs, config.context_length
    for inputs, labels in zip(segment.inputs.tolist(), segment.labels.tolist(), strict=True):
        memory = dict(zip(inputs[0:old_end:2], inputs[1:old_end:2], strict=True))
        updates = dict(zip(inputs[old_end:context:2], inputs[old_end + 1 : context : 2], strict=True))
        assert len(memory) == config.num_kv_pairs
        assert len(updates) == config.num_updates
        assert all(memory[key] != value for key, value in updates.items())
        memory |= updates
        scored = {inputs[t]: label for t, label in enumerate(labels) if label != IGNORED}
        assert scored == memory


def test_official_updates_may_change_nothing():
    config = ForgettingConfig(60, 2000, 32, 4, 2, random_non_queries=False)
    ours, theirs = make_forgetting(config, 1), make_forgetting(config, 1, compat="official")
    idle = {}
    for name, segment in (("ours", ours), ("theirs", theirs)):
        keys, values = segment.inputs[:, :8:2], segment.inputs[:, 1:8:2]
        updated, new = segment.inputs[:, 8:12:2], segment.inputs[:, 9:12:2]
        old = torch.stack([values[keys == updated[:, [j]]] for j in range(2)], 1)
        idle[name] = int((old == new).sum())
    assert idle["ours"] == 0
    assert idle["theirs"] > 40
    # Both draw the same numbers: all but the values of updates is equal.
    same = torch.ones(32, dtype=torch.bool)
    same[[9, 11]] = False
    assert torch.equal(ours.inputs[:, same], theirs.inputs[:, same])
    assert torch.equal(ours.labels == IGNORED, theirs.labels == IGNORED)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (make_compositional, CompositionalConfig(60, 3, 30, 4)),
        (make_forgetting, ForgettingConfig(60, 3, 32, 4, 2)),
    ],
)
def test_filler_is_the_callers_or_follows_from_the_seed(make, config):
    torch.manual_seed(1)
    np.random.seed(1)
    first = make(config, 9).inputs
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(make(config, 9).inputs, first)
    blank = make(type(config)(**{**vars(config), "random_non_queries": False}), 9).inputs
    length = config.input_seq_len
    tokens = torch.randint(60, (3, length), generator=torch.Generator().manual_seed(5))
    filled = make(config, 9, filler=torch.Generator().manual_seed(5)).inputs
    assert torch.equal(filled, torch.where(blank == 0, tokens, blank))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            CompositionalConfig,
            {"num_kv_pairs": 5},
            "num_kv_pairs must be a square number (1, 4, 9, ...), got 5",
        ),
        (
            CompositionalConfig,
            {"num_kv_pairs": 16},
            "num_kv_pairs=16 needs input_seq_len of at least 96, got 64",
        ),
        (CompositionalConfig, {"input_seq_len": 33}, "input_seq_len must be even, got 33"),
        (CompositionalConfig, {"vocab_size": 12}, "vocab_size must exceed input_seq_len=64, got 12"),
        (ForgettingConfig, {"num_updates": 9}, "num_updates must be at most num_kv_pairs=8, got 9"),
        (ForgettingConfig, {"num_updates": -1}, "num_updates must be at least 0, got -1"),
        (
            ForgettingConfig,
            {"input_seq_len": 38},
            "with num_updates=4 needs input_seq_len of at least 40, got 38",
        ),
    ],
)
def test_impossible_settings_are_refused(config, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**options)


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="compat must be one of None, official, got 'oficial'"):
        make_forgetting(ForgettingConfig(), 1, compat="oficial")
    with pytest.raises(ValueError, match="seed must be at least 0, got -3"):
        make_compositional(CompositionalConfig(), -3)
    with pytest.raises(TypeError, match=r"num_updates must be an integer, got 2\.0"):
        ForgettingConfig(num_updates=2.0)
