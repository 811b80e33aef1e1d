"""What holds for every mask: its meaning, its blocks, its density, and that it is a value."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from gatework import masks
from gatework.masks import EMPTY, FULL, PARTIAL, Mask
from tests.masks import families
from tests.masks.families import FAMILIES, Sample

SAMPLERS = {**FAMILIES, "combination": families.combination}
every_family = pytest.mark.parametrize("family", SAMPLERS)
#: Overlapping slices, and combinations, may be called partial where together they are not.
PROMISES_ONLY = {"slices", "combination"}


def fresh(family: str, data: st.DataObject) -> Sample:
    return SAMPLERS[family](data.draw)


def exact_classes(dense: torch.Tensor, q_edges: torch.Tensor, kv_edges: torch.Tensor) -> torch.Tensor:
    """The classes of blocks by looking at each pair."""
    classes = torch.zeros(len(q_edges) - 1, len(kv_edges) - 1, dtype=torch.int8)
    for row, rows in enumerate(dense.split(q_edges.diff().tolist())):
        for column, block in enumerate(rows.split(kv_edges.diff().tolist(), 1)):
            classes[row, column] = FULL if block.all() else PARTIAL if block.any() else EMPTY
    return classes


@every_family
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_to_dense_says_what_the_mask_means(family, data):
    sample = fresh(family, data)
    assert torch.equal(sample.mask.to_dense(sample.q_length, sample.kv_length), families.dense(sample))


@every_family
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_blocks_are_what_their_pairs_say(family, data):
    sample = fresh(family, data)
    q_edges, kv_edges = (families.edges(data.draw, length) for length in sample[1:3])
    found = sample.mask.classify(q_edges, kv_edges)
    exact = exact_classes(families.dense(sample), q_edges, kv_edges)
    assert found.dtype == torch.int8
    if family in PROMISES_ONLY:
        assert ((found == exact) | (found == PARTIAL)).all()
    else:
        assert torch.equal(found, exact)


@every_family
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_density_is_exact(family, data):
    sample = fresh(family, data)
    allowed = families.dense(sample)
    lengths = sample.q_length, sample.kv_length
    assert sample.mask.count(*lengths) == allowed.sum()
    assert sample.mask.density(*lengths) == int(allowed.sum()) / max(1, allowed.numel())


@every_family
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_pairs_are_counted_block_by_block(family, data):
    """As they are for masks without a closed form."""
    sample = fresh(family, data)
    if sample.q_length and sample.kv_length:
        count = masks.blocks.count_blocks(sample.mask, sample.q_length, sample.kv_length)
        assert count == families.dense(sample).sum()


@every_family
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_masks_are_values(family, data):
    sample, namespace = fresh(family, data), vars(masks)
    mask = sample.mask
    assert mask != masks.SlidingWindow(98, 99)
    assert len({mask, mask, masks.SlidingWindow(98, 99)}) == 2
    if "BlockSparse" not in repr(mask):
        again = eval(repr(mask), dict(namespace))
        assert again == mask
        assert hash(again) == hash(mask)


@every_family
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_block_masks_are_those_of_flex_attention(family, data):
    sample = fresh(family, data)
    if sample.q_length == 0 or sample.kv_length == 0:
        return  # create_block_mask takes no empty sequences
    size = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    ours = sample.mask.block_mask(sample.q_length, sample.kv_length, block_size=size)
    theirs = create_block_mask(
        sample.mask, None, None, sample.q_length, sample.kv_length, device="cpu", BLOCK_SIZE=size
    )
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert (ours.to_dense() >= theirs.to_dense()).all()  # no block is left out
    if family not in PROMISES_ONLY:
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        for ours_field, theirs_field in zip(block_fields(ours), block_fields(theirs), strict=True):
            assert torch.equal(ours_field, theirs_field)


def block_fields(block_mask) -> list[torch.Tensor]:
    names = [
        f"{full}{side}_{what}"
        for full in ("", "full_")
        for side in ("kv", "q")
        for what in ("num_blocks", "indices")
    ]
    return [getattr(block_mask, name) for name in names]


LENGTHS = masks.sample_document_lengths(1 << 17, seed=1)
LONG = [
    masks.Causal(),
    masks.SlidingWindow(256, 256),
    masks.Causal() & masks.SlidingWindow(100, 2),
    masks.PrefixLM(1000),
    masks.GlobalWindow(1000),
    masks.BlockCausal(1024),
    masks.RandomBlocks(96, 3),
    masks.CompressedBlocks(2),
    masks.Document(LENGTHS),
    masks.CausalDocument(LENGTHS),
    masks.PrefixLMDocument(LENGTHS, 34),
    masks.SharedQuestion(LENGTHS),
    masks.CausalBlockwise(LENGTHS),
    masks.BlockCausalDocument(LENGTHS, 1024),
    masks.Neighborhood(1 << 17, 513),
    masks.Neighborhood(1 << 17, 513, stride=8, dilation=4, is_causal=True),
    masks.Neighborhood((256, 512), 13),
    masks.Neighborhood((32, 64, 64), 7, dilation=2),
    masks.Halo((256, 512), 8, 3),
    masks.Windows((256, 512), 8, shift=4),
    masks.Grid((256, 512), 8),
    masks.BlockSparse.random(1 << 17, 1 << 17, 128, 0.1),
    masks.Slices([(0, 1 << 16, 0, 1 << 16, "causal"), (1 << 16, 1 << 17, 0, 1 << 15, "full")]),
]


@pytest.mark.parametrize("mask", LONG, ids=lambda mask: f"{mask!r:.40}")
def test_long_sequences_take_blocks_not_pairs(mask):
    """A dense mask of this length has 17 billion pairs; what is said of some blocks is checked."""
    length, size = 1 << 17, 128
    block_mask = mask.block_mask(length, length, block_size=size)
    kept = [
        torch.zeros(1024, 1025, dtype=torch.bool).scatter_(
            1, indices.where(torch.arange(1024) < count[:, None], 1024).long(), True
        )[:, :-1]
        for count, indices in (
            (block_mask.kv_num_blocks[0, 0], block_mask.kv_indices[0, 0]),
            (block_mask.full_kv_num_blocks[0, 0], block_mask.full_kv_indices[0, 0]),
        )
    ]
    gen = torch.Generator().manual_seed(0)
    for wanted in (kept[0], kept[1], ~(kept[0] | kept[1])):
        cells = wanted.nonzero()
        for row, column in (
            cells[torch.randint(len(cells), (5,), generator=gen)].tolist() if len(cells) else []
        ):
            pairs = mask.pairs(
                torch.arange(row * size, row * size + size), torch.arange(column * size, column * size + size)
            )
            assert pairs.all() == kept[1][row, column]
            assert pairs.any() == (kept[0] | kept[1])[row, column]
    assert 0 < mask.density(length, length) < 1


class EveryThird(Mask):
    """A user's own mask: nothing but the predicate."""

    def __call__(self, batch, head, q_idx, kv_idx):
        return (q_idx + kv_idx) % 3 == 0


class ByHead(EveryThird):
    """One that tells sequences and heads apart."""

    batch_size, num_heads = 2, 3

    def __call__(self, batch, head, q_idx, kv_idx):
        return kv_idx <= q_idx + 2 * head - batch


def test_masks_of_ones_own_need_only_the_predicate(monkeypatch):
    monkeypatch.setattr(masks.blocks, "_PAIRS", 7)  # several rounds
    mask = EveryThird()
    dense = mask.to_dense(20, 17)
    q_edges, kv_edges = torch.tensor([0, 1, 3, 20]), torch.tensor([0, 2, 3, 16, 17])
    assert torch.equal(mask.classify(q_edges, kv_edges), exact_classes(dense, q_edges, kv_edges))
    assert mask.count(20, 17) == dense.sum()
    assert not mask.is_relative


def test_heads_and_sequences_may_differ():
    mask, lengths = ByHead(), (30, 40)
    dense = mask.to_dense(*lengths)
    assert dense.shape == (2, 3, *lengths)
    assert torch.equal(mask.at(1, 2).to_dense(*lengths), dense[1, 2])
    assert mask.count(*lengths) == dense.sum()
    ours = mask.block_mask(*lengths, block_size=8)
    theirs = create_block_mask(mask, 2, 3, *lengths, device="cpu", BLOCK_SIZE=8)
    assert all(map(torch.equal, block_fields(ours), block_fields(theirs)))
    both = (mask & masks.SlidingWindow(3, 3)).with_query_offset(2)
    expected = dense[:, :, 2:] & masks.SlidingWindow(3, 3).to_dense(*lengths)[2:]
    assert torch.equal((~both).to_dense(28, 40), ~expected)
    assert torch.equal(both.at(0, 1).to_dense(28, 40), expected[0, 1])
    assert (both.batch_size, both.num_heads) == (2, 3)


def test_one_mask_serves_more_heads():
    ours = masks.Causal().block_mask(20, 20, block_size=8, batch=2, heads=3)
    theirs = create_block_mask(masks.Causal(), 2, 3, 20, 20, device="cpu", BLOCK_SIZE=8)
    assert all(map(torch.equal, block_fields(ours), block_fields(theirs)))


@pytest.mark.parametrize("length", [0, 20, 700])
def test_pictures_show_every_pair_or_block(length):
    picture = (masks.Causal() | masks.PrefixLM(3)).plot(length, length)
    cells = torch.as_tensor(picture.data[0].z)
    if length == 700:
        assert cells.shape == (234, 234)
        assert set(cells.unique().tolist()) == {EMPTY, PARTIAL, FULL}
    else:
        assert torch.equal(cells == FULL, masks.PrefixLM(3).to_dense(length, length))
    picture.to_json()


@pytest.mark.compile
@pytest.mark.parametrize(
    "mask",
    [
        masks.CausalDocument([5, 9, 16]),
        masks.Neighborhood((5, 6), 3, dilation=(1, 2)),
        masks.BlockSparse.random(30, 30, 4, 0.4),
        masks.Slices([(0, 20, 3, 30, 1), (20, 30, 0, 8, 0)]),
        ~masks.Halo(30, 4, 2) | masks.GlobalWindow(2),
    ],
    ids=lambda mask: f"{mask!r:.20}",
)
def test_block_masks_may_be_created_in_compiled_code(mask):
    torch.compiler.reset()
    compiled = torch.compile(create_block_mask, backend="eager", fullgraph=True)
    found = compiled(mask, None, None, 30, 30, device="cpu", BLOCK_SIZE=8)
    assert torch.equal(found.to_dense(), mask.block_mask(30, 30, block_size=8).to_dense())


@pytest.mark.bad_input
def test_wrong_sizes_are_named():
    document = masks.Document([3, 4])
    with pytest.raises(ValueError, match=r"q_length must be 7, which the mask Document\(.*got 8"):
        document.to_dense(8, 7)
    with pytest.raises(ValueError, match=r"kv_length must be 7.*got 6"):
        (masks.Causal() & document).block_mask(7, 6)
    with pytest.raises(ValueError, match=r"heads must be 3.*got 4"):
        (~ByHead()).check(5, 5, batch=2, heads=4)
    with pytest.raises(ValueError, match="batch must be at least 0, got -1"):
        document.check(7, 7, batch=-1)
    with pytest.raises(ValueError, match="q_length 5 at offset 3 must lie within the 7 queries"):
        document.with_query_offset(3).check(5, 7)
    with pytest.raises(ValueError, match="q_length 4 at offset -1 must lie within the 7 queries"):
        document.with_query_offset(-1).check(4, 7)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        masks.Full().block_mask(4, 4, block_size=0)
    with pytest.raises(ValueError, match=r"classify mask\.at\(batch, head\)"):
        ByHead().classify(torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"agree in q_size.*got 7 of Document.*and 8 of"):
        document | masks.Document([8])


def test_parts_of_a_sequence_are_checked_in_combinations():
    mask = (masks.Document([3, 4]).with_query_offset(2) & masks.Full()).with_query_offset(3)
    assert torch.equal(mask.to_dense(2, 7), masks.Document([3, 4]).to_dense(7, 7)[5:])
    with pytest.raises(ValueError, match="must lie within"):
        mask.check(3, 7)
