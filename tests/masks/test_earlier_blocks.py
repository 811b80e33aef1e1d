"""Random blocks are drawn as stated; wrong numbers are named. Their meaning is tested with all families."""

from __future__ import annotations

import pytest
import torch

from gatework import masks
from gatework.masks.earlier_blocks import hashed


def test_hashes_look_random_and_depend_on_all_that_is_given():
    numbers = torch.arange(1 << 14)
    values = hashed(0, numbers)
    assert values.min() >= 0
    assert values.max() < 1 << 32
    for bits in (
        values & 15,
        values >> 28,
        (values ^ hashed(0, numbers + 1)) & 15,
        (values ^ hashed(1, numbers)) & 15,
    ):
        counts = torch.bincount(bits, minlength=16)
        assert ((counts - 1024).square() / 1024).sum() < 45  # chi squared, 15 degrees of freedom
    assert not torch.equal(hashed(0, numbers, numbers), hashed(0, numbers, numbers + 1))
    assert torch.equal(hashed(7, numbers[100:]), hashed(7, numbers)[100:])


def test_drawn_blocks_are_earlier_ones_of_all_places():
    dense = masks.RandomBlocks(2, 2, seed=3).to_dense(400, 400)[::2, ::2]
    assert not dense.triu().any()
    assert ((dense.sum(1)[1:] == 1) | (dense.sum(1)[1:] == 2)).all()
    row, column = dense[100:].nonzero(as_tuple=True)
    place = column / (row + 100)
    assert abs(place.mean() - 0.5) < 0.06
    assert place.max() > 0.9
    longer = masks.RandomBlocks(2, 2, seed=3).to_dense(500, 500)[::2, ::2]
    assert torch.equal(longer[:200, :200], dense)
    assert not torch.equal(masks.RandomBlocks(2, 2, seed=4).to_dense(400, 400)[::2, ::2], dense)


@pytest.mark.bad_input
def test_mistakes_are_named():
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        masks.RandomBlocks(0, 1)
    with pytest.raises(ValueError, match="num_random must be at least 0, got -1"):
        masks.RandomBlocks(1, -1)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        masks.RandomBlocks(1, 1, 0.5)
    with pytest.raises(ValueError, match="block must be at least 1, got 0"):
        masks.CompressedBlocks(0)
    with pytest.raises(ValueError, match="num_first must be at least 0, got -2"):
        masks.CompressedBlocks(3, -2)
