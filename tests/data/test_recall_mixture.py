import re

import numpy as np
import pytest
import torch

from gatework.data import counting
from gatework.data.mqar import MQARConfig, make_mqar
from gatework.data.recall_mixture import (
    RecallMixture,
    SegmentBatches,
    batch_loader,
    make_recall,
    make_split,
)
from gatework.data.recall_variants import CompositionalConfig, ForgettingConfig, make_forgetting
from gatework.data.segment import TokenBatch

EVERY_TASK = (
    MQARConfig(100, 5, 32, 4),
    CompositionalConfig(100, 5, 30, 4),
    ForgettingConfig(100, 5, 32, 4, 2),
    counting.ParityConfig(5, 12),
    counting.MajorityConfig(5, 12),
    counting.VocabMajorityConfig(5, 12, 6),
    counting.CumulativeParityConfig(5, 12),
    counting.CumulativeMajorityConfig(5, 12),
)


def mixture(**options):
    train = [MQARConfig(100, 7, 16, 2), MQARConfig(100, 4, 32, 4)]
    return RecallMixture(train, [MQARConfig(100, 5, 64, 8)], **options)


def train_and_test(mixed, **options):
    """The batches of both splits."""
    return make_split(mixed, "train", **options), make_split(mixed, "test", **options)


def test_batches_follow_the_segments_and_never_mix_them():
    train, test = train_and_test(mixture(batch_size=(3, 2)))
    assert [tuple(batch.inputs.shape) for batch in train] == [(3, 16), (3, 16), (1, 16), (3, 32), (1, 32)]
    assert [len(batch.slices) for batch in train] == [3, 3, 1, 3, 1]
    assert [batch.slices[0]["num_kv_pairs"] for batch in train] == [2, 2, 2, 4, 4]
    assert [len(batch.labels) for batch in test] == [2, 2, 1]
    seeds, _ = mixture().segment_seeds
    joined = torch.cat([train[0].inputs, train[1].inputs, train[-3].inputs])
    assert torch.equal(joined, make_mqar(MQARConfig(100, 7, 16, 2), seeds[0]).inputs)
    with pytest.raises(IndexError):
        train[5]


def test_seeds_are_those_of_the_authors_and_disjoint():
    rng = np.random.RandomState(5)
    train, test = rng.randint(0, 2**31, size=2), rng.randint(2**31, 2**32, size=1)
    assert mixture(seed=5).segment_seeds == (train.tolist(), test.tolist())
    assert max(train) < 2**31 <= min(test)


def test_official_slice_lists_keep_their_length():
    train = make_split(mixture(batch_size=3), "train", compat="official")
    assert [len(batch.slices) for batch in train] == [3] * 5
    assert [len(batch.inputs) for batch in train] == [3, 3, 1, 3, 1]


@pytest.mark.parametrize("config", EVERY_TASK, ids=lambda config: type(config).__name__)
def test_every_task_can_enter(config):
    both = RecallMixture([config], [config], batch_size=2, seed=3)
    train, test = train_and_test(both)
    batches = list(batch_loader(train))
    assert [len(batch.inputs) for batch in batches] == [2, 2, 1]
    assert all(isinstance(batch, TokenBatch) for batch in batches)
    assert all(batch.inputs.shape == batch.labels.shape for batch in batches)
    assert batches[0].slices == [config.slices] * 2
    assert max(int(batch.inputs.max()) for batch in batches) < both.vocab_size
    assert batches[0].inputs.shape[1] <= both.max_length
    assert not torch.equal(train[0].inputs, test[0].inputs)


def test_compat_reaches_the_forgetting_task():
    config = ForgettingConfig(60, 200, 32, 4, 4)
    ours, theirs = make_recall(config, 1), make_recall(config, 1, compat="official")
    assert not torch.equal(ours.inputs, theirs.inputs)
    assert torch.equal(theirs.inputs, make_forgetting(config, 1, compat="official").inputs)


def test_filler_runs_through_all_segments():
    filler, stream = (torch.Generator().manual_seed(6) for _ in range(2))
    for config in [*mixture().train, *mixture().test]:
        segment = make_recall(config, 4, mode="compat", filler=filler)
        assert torch.equal(segment.inputs, make_mqar(config, 4, mode="compat", filler=stream).inputs)


def test_no_global_randomness_is_read_or_moved():
    def read():
        train = make_split(mixture(batch_size=2), "train")
        return [batch.inputs for batch in batch_loader(train, shuffle_seed=1)]

    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = read()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    torch.nn.Linear(100, 100)  # a larger model would draw more
    assert all(map(torch.equal, first, read()))


def test_loader_shuffles_whole_batches_or_nothing():
    train = make_split(mixture(batch_size=2), "train")
    plain, shuffled = batch_loader(train), batch_loader(train, shuffle_seed=3)
    assert len(shuffled) == len(train) == 6
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(plain, train, strict=True))
    first, second = ([batch.inputs.tolist() for batch in shuffled] for _ in range(2))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(batch.inputs.tolist() for batch in train)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train": []}, ValueError, "train must hold at least one setting, got none"),
        ({"train": [{"vocab_size": 3}]}, TypeError, "train must hold settings such as MQARConfig, got {"),
        ({"test": [None]}, TypeError, "test must hold settings such as MQARConfig, got None"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": (3, 0)}, ValueError, "batch_size must be at least 1, got 0"),
        (
            {"batch_size": (3, 4, 5)},
            ValueError,
            "batch_size must be a number or (train, test), got (3, 4, 5)",
        ),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a number or (train, test), got 2.5"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_impossible_mixtures_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        RecallMixture(**{"train": [MQARConfig()], "test": [MQARConfig()], **options})


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="config must be a setting such as MQARConfig, got 3"):
        make_recall(3, 1)
    with pytest.raises(ValueError, match="mode must be one of fast, compat, got 'slow'"):
        make_recall(counting.ParityConfig(), 1, mode="slow")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        SegmentBatches([], 0)
    with pytest.raises(ValueError, match="compat must be one of None, official, got 'yes'"):
        SegmentBatches([], 1, compat="yes")
