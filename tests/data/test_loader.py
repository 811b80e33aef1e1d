"""The loader: what comes follows from seed, epoch and number, whoever loads it, wherever it starts."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from gatework.data.loader import ResumableLoader


class Noisy(Dataset):
    """Numbers, each with random ones from all three generators beside it."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return [float(index), random.random(), float(np.random.rand()), float(torch.rand(()))]


def stack(examples):
    return torch.tensor(examples, dtype=torch.float64)


def loader(size=22, batch_size=4, **options):
    return ResumableLoader(Noisy(size), batch_size, collate=stack, **{"seed": 7, "shuffle": True, **options})


def epochs(reader, count=3):
    return [list(reader) for _ in range(count)]


def equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


@pytest.fixture(scope="module")
def stream():
    return [batch for epoch in epochs(loader()) for batch in epoch]


def test_every_epoch_has_all_rows_in_an_order_of_its_own(stream):
    numbers = [torch.cat(stream[first : first + 6])[:, 0].tolist() for first in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(22)) for epoch in numbers)
    assert numbers[0] != numbers[1] != numbers[2]
    expected = np.random.default_rng([7, 1]).permutation(22).tolist()
    assert numbers[1] == expected
    assert torch.cat(list(loader(shuffle=False)))[:, 0].tolist() == list(range(22))
    assert [len(batch) for batch in stream[:6]] == [4, 4, 4, 4, 4, 2]


def test_transforms_differ_between_batches_and_seeds(stream):
    drawn = torch.cat(stream)[:, 1:].flatten().tolist()
    assert len(set(drawn)) == len(drawn)
    other = torch.cat(list(loader(seed=8)))[:, 1:].flatten().tolist()
    assert not set(drawn) & set(other)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(stream, num_workers):
    reader = loader(num_workers=num_workers)
    assert equal([batch for epoch in epochs(reader) for batch in epoch], stream)


def test_workers_that_are_new_interpreters_change_nothing(stream, monkeypatch):
    monkeypatch.setattr("gatework.data.loader._START_METHOD", "spawn")  # as outside Linux
    reader = loader(num_workers=1)
    assert equal([batch for epoch in epochs(reader) for batch in epoch], stream)
    reader.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_reading_can_start_anywhere(stream, num_workers):
    starts = range(18) if num_workers == 0 else (0, 5, 6, 7, 17)
    reader = loader(num_workers=num_workers)
    for start in starts:
        assert equal(list(reader.read(start, 18)), stream[start:])


def test_the_state_counts_what_was_taken_not_what_was_prepared(stream):
    for taken in range(1, 13):
        reader = loader(num_workers=0 if taken % 6 else 2)
        read = []
        while len(read) < taken:
            for batch in reader:
                read.append(batch)
                if len(read) == taken:
                    state = reader.state_dict()
                    break
        assert divmod(taken, 6) == (state["epoch"], state["batch"])
        resumed = loader()
        resumed.load_state_dict(state)
        rest = [batch for epoch in epochs(resumed) for batch in epoch][: 18 - taken]
        assert equal(rest, stream[taken:])


def test_an_iterator_made_in_vain_moves_nothing(stream):
    reader = loader()
    iter(reader)
    iter(iter(reader))
    assert equal(list(reader), stream[:6])
    iter(reader)
    assert equal(list(reader), stream[6:12])


def test_an_epoch_can_be_named(stream):
    reader = loader()
    reader.set_epoch(2)
    assert equal(list(reader), stream[12:])


def test_processes_share_the_batches(stream):
    parts = [loader().configured(rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert equal(list(parts[0]), stream[0:6:2])
    assert equal(list(parts[1]), stream[1:6:2])
    of_four = [loader().configured(rank=rank, world_size=4) for rank in range(4)]
    assert [len(part) for part in of_four] == [1] * 4  # the last two batches of six are left out
    assert equal([next(iter(part)) for part in of_four], stream[:4])


@pytest.mark.bad_input  # beartype picks the list items it checks with Python's generator
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_main_process_keeps_its_random_state(num_workers):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    list(loader(num_workers=num_workers))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_ready_made_batches_are_read_as_they_are():
    reader = ResumableLoader(["a", "b", "c"], seed=1, shuffle=True)
    first, second = epochs(reader, 2)
    assert sorted(first) == sorted(second) == ["a", "b", "c"]
    assert list(ResumableLoader([])) == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loader(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: ResumableLoader([1], 2), "collate must say"),
        (lambda: loader(seed=-1), "seed must be at least 0"),
        (lambda: loader(shuffle=1), "shuffle must be True or False"),
        (lambda: loader(num_workers=-1), "num_workers must be at least 0"),
        (lambda: loader(rank=2, world_size=2), "rank must be below world_size=2, got 2"),
        (lambda: loader().set_epoch(-1), "epoch must be at least 0"),
        (lambda: list(loader(size=3, world_size=2).read(0, 1)), "at least one batch for each of the 2"),
        (
            lambda: loader(size=5).load_state_dict(loader().state_dict()),
            "state must be of a loader with length=2, got 6",
        ),
        (
            lambda: loader().load_state_dict(loader(seed=2).state_dict()),
            "state must be of a loader with seed=7, got 2",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()
