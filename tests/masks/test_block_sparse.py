import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.masks import BlockSparse
from gatework.masks.values import Table

MAP = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)


def test_blocks_of_one_size_may_end_with_a_smaller_one():
    mask = BlockSparse.from_map(MAP, (4, 3), q_length=7, kv_length=8)
    expected = MAP.repeat_interleave(4, 0).repeat_interleave(3, 1)[:7, :8]
    assert torch.equal(mask.to_dense(7, 8), expected)
    assert (mask.q_size, mask.kv_size, mask.num_heads, mask.batch_size) == (7, 8, None, None)
    q_cuts, kv_cuts = mask.edges(7, 8)
    assert (q_cuts.tolist(), kv_cuts.tolist()) == ([0, 4, 7], [0, 3, 6, 8])


def test_query_heads_share_the_maps_of_their_group():
    mask = BlockSparse.random(40, 30, 8, 0.5, batch=2, heads=3, group_size=2, seed=1)
    dense = mask.to_dense(40, 30)
    assert dense.shape == (2, 6, 40, 30)
    assert torch.equal(dense[:, ::2], dense[:, 1::2])
    assert not torch.equal(dense[:, 0], dense[:, 2])
    assert mask.at(1, 4) == mask.at(1, 5) != mask.at(1, 3)
    assert torch.equal(mask.at(1, 4).to_dense(40, 30), dense[1, 4])
    assert mask.count(40, 30) == dense.sum()


def test_sizes_may_differ_by_head():
    sizes = torch.tensor([[1, 4], [3, 2]])
    mask = BlockSparse(torch.ones(2, 2, 2).bool().tril(), sizes, sizes)
    dense = mask.to_dense(5, 5)
    assert dense[0].sum((1, 2)).tolist() == [25 - 1 * 4, 25 - 3 * 2]
    assert mask.edges(5, 5)[0].tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize(("ratio", "kept"), [(0, 1), (0.4, 3), (0.49, 3), (1, 8)])
def test_random_rows_keep_the_same_number_of_blocks(ratio, kept):
    blocks = BlockSparse.random(60, 64, 8, ratio, heads=4).blocks.tensor
    assert blocks.shape == (1, 4, 8, 8)
    assert (blocks.sum(-1) == kept).all()


def test_random_blocks_are_those_of_their_seed():
    first, same, other = (BlockSparse.random(64, 64, 8, 0.5, seed=seed) for seed in (0, 0, 1))
    assert first == same != other
    assert hash(first) == hash(same)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 6), columns=st.integers(0, 6), heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_indices_say_the_same_as_the_map(rows, columns, heads, seed):
    block_map = torch.rand(heads, rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask = BlockSparse.from_map(block_map, 5)
    indices, counts = mask.to_indices()
    assert torch.equal(counts[0].long(), block_map.sum(-1))
    lengths = {"q_length": 5 * rows, "kv_length": 5 * columns}
    assert BlockSparse.from_indices(indices[0], 5, **lengths) == mask
    assert BlockSparse.from_indices(indices[0].abs(), 5, **lengths, counts=counts[0]) == mask


def test_tables_are_values():
    table = Table(torch.tensor([[1, 2]]))
    assert table == Table(torch.tensor([[1, 2]]))
    assert hash(table) == hash(Table(torch.tensor([[1, 2]])))
    assert table != Table(torch.tensor([1, 2]))
    assert table != Table(torch.tensor([[1, 2]], dtype=torch.int32))
    assert table != Table(torch.tensor([[1, 3]]))
    assert repr(Table(MAP)) == "<bool tensor (2, 3), 2 true>"


def test_the_map_is_copied():
    block_map = MAP.clone()
    mask = BlockSparse.from_map(block_map, 4)
    block_map[1] = True
    assert mask == BlockSparse.from_map(MAP, 4)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: BlockSparse.from_map(MAP.int(), 4), TypeError, "block_map must be boolean, got torch.int32"),
        (lambda: BlockSparse.from_map(MAP[0], 4), ValueError, "block_map must have rank 2, 3 or 4"),
        (lambda: BlockSparse.from_map(MAP[None][:0], 4), ValueError, "block_map must have a head"),
        (lambda: BlockSparse.from_map(MAP, 0), ValueError, "block_size must be at least 1, got 0"),
        (lambda: BlockSparse.from_map(MAP, 4, q_length=9), ValueError, "q_length must have 2 blocks of 4"),
        (lambda: BlockSparse.from_map(MAP, 4, group_size=0), ValueError, "group_size must be at least 1"),
        (
            lambda: BlockSparse(MAP, torch.tensor([1, 2]), torch.tensor([1, 2])),
            ValueError,
            r"kv_sizes must have 3 numbers.*got shape \(2,\)",
        ),
        (
            lambda: BlockSparse(MAP, torch.tensor([0, 2]), torch.tensor([1, 2, 3])),
            ValueError,
            "q_sizes must be at least 1, got 0",
        ),
        (
            lambda: BlockSparse(MAP.expand(2, 2, 3), torch.tensor([[1, 2], [2, 2]]), torch.ones(3).int()),
            ValueError,
            r"q_sizes must have one sum for all heads, got \[3, 4\]",
        ),
        (
            lambda: BlockSparse(MAP, torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])),
            TypeError,
            "q_sizes must be integers",
        ),
        (lambda: BlockSparse.random(8, 8, 4, 1.5), ValueError, r"ratio must be between 0 and 1, got 1\.5"),
        (
            lambda: BlockSparse.from_indices(torch.tensor([[2]]), 4, q_length=4, kv_length=8),
            ValueError,
            "indices must be less than the 2 blocks, got 2",
        ),
    ],
)
def test_wrong_maps_and_sizes_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
