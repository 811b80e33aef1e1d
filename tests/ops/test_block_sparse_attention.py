"""Attention over learned blocks: the door and the definition, plans straight from maps, fresh patterns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework import ops
from gatework.masks import BlockSparse, Causal, SlidingWindow
from gatework.ops import block_sparse_attention
from gatework.ops.attention import blocked, choice, flex, kernels, planning
from gatework.ops.attention.counting import tile_pairs
from gatework.ops.attention.options import Options
from gatework.ops.attention.planning import TileSize, make_plan
from gatework.ops.attention.planning_blocks import block_pattern, block_plan, tile_share
from gatework.ops.block_sparse_attention import block_sparse_attention_reference
from tests.ops.test_attention import DOUBLE, assert_same, outputs_and_gradients, randn

needs_numba = pytest.mark.skipif(not kernels.is_available(), reason="numba is not installed")
needs_compiler = pytest.mark.skipif(
    flex._missing_on_cpu() is not None, reason="no compiler for FlexAttention"
)
#: An engine, what it computes in, and how far it may lie from the definition in float64.
ENGINES = {
    "chosen": (None, DOUBLE, 1e-11),
    "reference": ("reference", DOUBLE, 1e-11),
    "dense": ("dense", DOUBLE, 1e-11),
    "blocked-torch": ("blocked-torch", DOUBLE, 1e-11),
    "blocked-numba": ("blocked-numba", torch.float32, 1e-4),
}


def random_map(*shape, density=0.4, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@st.composite
def calls(draw):
    """Tensors, a map for every query head, the blocks as the door takes them, and its options."""
    gen = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    batch, kv_heads, groups = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    kv_length = draw(st.sampled_from([0, 1, 2, 16, 37, 64, 90]))
    q_length = draw(st.sampled_from([0, 1, kv_length // 2, kv_length, kv_length]))
    q_length = min(q_length, kv_length)
    size = draw(st.sampled_from([1, 3, 8, 16, 32, 100]))
    heads = kv_heads * groups
    q_blocks, kv_blocks = -(-q_length // size), -(-kv_length // size)
    shape = (
        draw(st.sampled_from([1, batch])),
        draw(st.sampled_from([1, kv_heads, heads])),
        q_blocks,
        kv_blocks,
    )
    block_map = torch.rand(shape, generator=gen) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    tensors = {
        "q": randn(batch, heads, q_length, 3, gen=gen),
        "k": randn(batch, kv_heads, kv_length, 3, gen=gen),
        "v": randn(batch, kv_heads, kv_length, draw(st.sampled_from([3, 2])), gen=gen),
    }
    blocks, counts = block_map, None
    if draw(st.booleans()):
        blocks, counts = as_indices(block_map, gen)
        if draw(st.booleans()):
            counts = None
        else:  # what is behind the counts is not looked at
            blocks = blocks.where(blocks >= 0, 999)
    options = {
        "block_size": size,
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, -0.7])),
    }
    return tensors, block_map.repeat_interleave(heads // shape[1], 1), blocks, counts, options


def as_indices(block_map, gen):
    """The selected blocks of each row in random order, padded with -1, and how many they are."""
    order = torch.rand(block_map.shape, generator=gen).masked_fill(~block_map, 2.0).argsort(-1)
    counts = block_map.sum(-1)
    return order.where(torch.arange(block_map.shape[-1]) < counts[..., None], -1), counts


@pytest.mark.parametrize("name", [*list(ENGINES)[:-1], pytest.param("blocked-numba", marks=needs_numba)])
@settings(max_examples=40, deadline=None)
@given(call=calls())
def test_every_engine_computes_the_definition(name, call):
    tensors, block_map, blocks, counts, options = call
    engine, dtype, tolerance = ENGINES[name]

    def wanted(q, k, v):
        return block_sparse_attention_reference(q, k, v, block_map, **options)

    def ours(q, k, v):
        return block_sparse_attention(
            q, k, v, blocks, counts=counts, engine=engine, return_lse=True, **options
        )

    theirs = outputs_and_gradients(wanted, tensors, {})
    inputs = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    assert_same([part.double() for part in outputs_and_gradients(ours, inputs, {})], theirs, tolerance)


@pytest.mark.parametrize("name", ["blocked-torch", pytest.param("blocked-numba", marks=needs_numba)])
@pytest.mark.parametrize("map_heads", [2, 4])
def test_many_tiles_of_sixty_four(name, map_heads):
    gen = torch.Generator().manual_seed(0)
    tensors = {key: randn(1, heads, 500, 16, gen=gen) for key, heads in (("q", 4), ("k", 2), ("v", 2))}
    block_map = random_map(1, map_heads, 8, 8)
    whole = block_map.repeat_interleave(4 // map_heads, 1)
    theirs = outputs_and_gradients(block_sparse_attention_reference, tensors, {"block_map": whole})
    _, dtype, tolerance = ENGINES[name]
    inputs = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    ours = outputs_and_gradients(
        block_sparse_attention, inputs, {"blocks": block_map, "engine": name, "return_lse": True}
    )
    assert_same([part.double() for part in ours], theirs, tolerance)


def test_gradcheck():
    block_map = random_map(1, 1, 3, 3, density=0.6)
    block_map[0, 0, 1] = False  # queries that are left nothing
    assert torch.autograd.gradcheck(
        lambda q, k, v: block_sparse_attention(q, k, v, block_map, block_size=3, engine="blocked-torch"),
        [randn(1, heads, 7, 2).requires_grad_() for heads in (2, 1, 1)],
    )


def test_a_row_without_blocks_is_zero():
    q = randn(1, 2, 128, 8).requires_grad_()
    y, lse = block_sparse_attention(q, q, q, torch.zeros(1, 1, 2, 2, dtype=torch.bool), return_lse=True)
    assert not y.any()
    assert lse.isneginf().all()
    y.sum().backward()
    assert not q.grad.any()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 60), st.integers(0, 30)),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_with_the_diagonal_every_query_sees_itself(lengths, sizes):
    q_length, more = lengths
    kv_length = q_length + more
    q, k = randn(1, 1, q_length, 2), randn(1, 1, kv_length, 2)
    positions = torch.eye(kv_length, dtype=DOUBLE)[None, None]  # what each weight goes to
    nothing = torch.zeros(1, 1, -(-q_length // sizes[0]), -(-kv_length // sizes[1]), dtype=torch.bool)
    weights = block_sparse_attention(q, k, positions, nothing, block_size=sizes, force_diagonal=True)
    itself = torch.arange(q_length) + more
    assert (weights[0, 0, torch.arange(q_length), itself] > 0).all()
    # Nothing but blocks that hold the position of a query of the same block.
    first = torch.arange(q_length) // sizes[0] * sizes[0] + more
    before = torch.arange(kv_length) < first[:, None] // sizes[1] * sizes[1]
    assert not weights[0, 0][before].any()


def test_decoding_is_the_last_row():
    q, k, v = (randn(1, 2, 100, 4) for _ in range(3))
    block_map = random_map(1, 2, 7, 7, density=0.6)
    whole = block_sparse_attention(q, k, v, block_map, block_size=16)
    last = block_sparse_attention(q[:, :, -1:], k, v, block_map[:, :, -1:], block_size=16)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=0, atol=1e-12)
    chunk = block_sparse_attention(q[:, :, 64:], k, v, block_map[:, :, 4:], block_size=16)
    torch.testing.assert_close(chunk, whole[:, :, 64:], rtol=0, atol=1e-12)


# --- plans straight from the map ---


def random_pattern(data):
    """A block-sparse mask, alone or with the causal one in either order, and its lengths."""
    q_length, kv_length = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    sizes = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    entries = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    block_map = random_map(
        *entries,
        -(-q_length // sizes[0]),
        -(-kv_length // sizes[1]),
        density=data.draw(st.floats(0, 1)),
        seed=data.draw(st.integers(0, 999)),
    )
    if data.draw(st.booleans()):
        block_map[:, -1] = block_map[:, 0]  # heads that share a pattern
    mask = BlockSparse.from_map(
        block_map, sizes, q_length=q_length, kv_length=kv_length, group_size=data.draw(st.integers(1, 2))
    )
    causal = Causal().with_query_offset(data.draw(st.integers(-10, 30)))
    kind = data.draw(st.integers(0, 2))
    return (mask, mask & Causal(), causal & mask)[kind], q_length, kv_length


def allowed_by(plan, q_length, kv_length):
    """The pairs that a plan allows, for every sequence and head; every query must be in one tile."""
    count = len(plan.pattern_tile) - 1
    pairs = torch.zeros(count, q_length, kv_length, dtype=torch.int64)
    seen = torch.zeros(count, q_length, dtype=torch.int64)
    for pattern in range(count):
        for tile in range(*plan.pattern_tile[pattern : pattern + 2].tolist()):
            query = plan.query[slice(*plan.tile_query[tile : tile + 2].tolist())].long()
            seen[pattern, query] += 1
            runs = range(*plan.tile_run[tile : tile + 2].tolist())
            keys = [torch.arange(int(plan.run_length[run])) + int(plan.run_start[run]) for run in runs]
            key = torch.cat([torch.empty(0, dtype=torch.int64), *keys])
            allowed = torch.ones(len(query), len(key), dtype=torch.int64)
            for piece in range(*plan.tile_piece[tile : tile + 2].tolist()):
                column, width, at = (
                    int(part[piece]) for part in (plan.piece_column, plan.piece_width, plan.piece_mask)
                )
                mask = plan.pool[at : at + len(query) * width].view(len(query), width)
                allowed[:, column : column + width] *= mask
            pairs[pattern, query[:, None], key] += allowed
    assert (seen == 1).all()
    assert int(pairs.sum()) == int((pairs > 0).sum())  # no pair twice
    return pairs[plan.pattern_of.long()].bool()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), rows=st.integers(8, 40))
def test_a_plan_from_the_map_is_the_general_plan(data, rows):
    mask, q_length, kv_length = random_pattern(data)
    pattern = block_pattern(mask)
    general = planning._plan_by_parts(mask, q_length, kv_length, TileSize(rows, 7, 4, 4))
    ours = block_plan(pattern, rows)
    if ours is None:  # small blocks, of which several should share a tile
        ours = make_plan(mask, q_length, kv_length, TileSize(rows, 7, 4, 4))
    wanted = mask.to_dense(q_length, kv_length).expand(*general.pattern_of.shape, -1, -1)
    for plan in (general, ours):
        assert torch.equal(allowed_by(plan, q_length, kv_length), wanted)
    assert [part.dtype for part in ours] == [part.dtype for part in general]
    if max([0, *pattern.blocks.q_edges.tensor.diff().flatten().tolist()]) in range(8, rows + 1):
        share = tile_pairs(ours)[ours.pattern_of.long()].double().mean() / max(1, q_length * kv_length)
        assert tile_share(pattern) == pytest.approx(float(share))


def test_other_masks_are_no_patterns():
    blocks = BlockSparse.from_map(random_map(3, 3), 16)
    own_edges = BlockSparse(random_map(2, 2, 2), torch.tensor([[8, 24], [16, 16]]), torch.tensor([16, 16]))
    for mask in (
        Causal(),
        blocks & SlidingWindow(3, 0),
        blocks | Causal(),
        blocks & blocks,
        ~blocks,
        own_edges,
    ):
        assert block_pattern(mask) is None


def test_fresh_patterns_are_planned_once_and_forgotten(monkeypatch):
    monkeypatch.setattr(blocked, "has_kernels", lambda: False)  # which would be compiled first
    planned = []
    monkeypatch.setattr(planning, "block_plan", lambda *given: planned.append(given) or block_plan(*given))
    q = randn(1, 2, 512, 8, dtype=torch.float32).requires_grad_()
    remembered = planning._packed.cache_info().currsize, choice._remembered_share.cache_info().currsize
    for seed in range(5):
        y = block_sparse_attention(q, q, q, random_map(1, 2, 8, 8, seed=100 + seed), engine=None)
        assert len(planned) == seed + 1
        y.sum().backward()  # is given the plan
        assert len(planned) == seed + 1
    assert planning._packed_blocks.cache_info().currsize <= 2
    assert remembered == (
        planning._packed.cache_info().currsize,
        choice._remembered_share.cache_info().currsize,
    )


def test_the_choice_follows_the_blocks():
    q = torch.empty(1, 2, 2048, 8)

    def chosen(density):
        blocks = random_map(1, 2, 32, 32, density=density)
        mask = BlockSparse.from_map(blocks, 64)
        return choice.fastest(q, q, q, Options(mask, None, 0.3, None, None, 0.0, False))

    assert chosen(0.2) == "blocked"
    assert chosen(1.0) == "dense"


# --- compiled ---


@needs_compiler
@pytest.mark.compile
@pytest.mark.parametrize(
    ("sizes", "is_causal", "map_heads"), [((64, 64), True, 4), ((16, 32), False, 2)], ids=str
)
def test_flex_compiles_nothing_for_a_fresh_pattern(sizes, is_causal, map_heads):
    q, k = torch.randn(1, 4, 200, 16), torch.randn(1, 2, 230, 16)
    graphs = torch._dynamo.utils.counters["stats"]
    counts = []
    for seed in range(3):
        blocks = random_map(1, map_heads, -(-200 // sizes[0]), -(-230 // sizes[1]), seed=seed)
        options = {"block_size": sizes, "is_causal": is_causal}
        with torch.no_grad():
            ours, wanted = (
                block_sparse_attention(q, k, k, blocks, engine=engine, **options)
                for engine in ("flex", "reference")
            )
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
        counts.append((graphs["unique_graphs"], flex._compiled.cache_info().misses))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] > 0


@needs_compiler
@pytest.mark.compile
def test_flex_with_blocks_that_its_kernels_do_not_read():
    q = torch.randn(1, 2, 300, 16)
    options = {"blocks": random_map(1, 2, 10, 8), "block_size": (32, 40)}
    with torch.no_grad():
        ours, wanted = (block_sparse_attention(q, q, q, engine=name, **options) for name in ("flex", "dense"))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 8), (32, 40), (64, 256), (16, 24)], ids=str)
def test_tables_of_blocks_that_flex_reads_wrongly_are_not_given(sizes):
    blocks = random_map(1, 2, -(-512 // sizes[0]), -(-512 // sizes[1]))
    pattern = block_pattern(BlockSparse.from_map(blocks, sizes, q_length=512, kv_length=512))
    assert flex._kernel_size(pattern, torch.device("cpu")) is None
    assert flex._kernel_size(pattern, torch.device("cuda")) is None


@pytest.mark.compile
def test_a_pattern_is_no_constant_of_a_compiled_graph():
    compiled = torch.compile(lambda q, blocks: block_sparse_attention(q * 2, q, q, blocks) * 2)
    q = torch.randn(1, 2, 512, 8)
    for seed in range(3):
        blocks = random_map(1, 2, 8, 8, seed=seed)
        torch.testing.assert_close(compiled(q, blocks), block_sparse_attention(q * 2, q, q, blocks) * 2)


# --- bad input ---

GOOD = {"blocks": torch.ones(1, 2, 3, 3, dtype=torch.bool), "block_size": 16}
INDICES = torch.zeros(1, 2, 3, 2, dtype=torch.int64)
BAD = {
    "floats": ({"blocks": GOOD["blocks"].float()}, TypeError, "blocks must be a boolean map.*float32"),
    "another size": ({"block_size": 8}, ValueError, r"blocks must have shape \(1 or 1, 1 or 2 or 4, 6, 6\)"),
    "heads": ({"blocks": GOOD["blocks"].repeat(1, 3, 1, 1)}, ValueError, r"got \(1, 6, 3, 3\)"),
    "rank": ({"blocks": GOOD["blocks"][0]}, ValueError, r"got \(2, 3, 3\)"),
    "indices for other rows": ({"blocks": INDICES[:, :, :2]}, ValueError, r"3, width\).*got \(1, 2, 2, 2\)"),
    "index too large": ({"blocks": INDICES + 3}, ValueError, "less than the 3 blocks of keys.*3 to 3"),
    "index too small": ({"blocks": INDICES - 2}, ValueError, "or -1 for none, got -2 to -2"),
    "counts of a map": ({"counts": INDICES[..., 0]}, ValueError, "counts go with indices"),
    "counts too large": ({"blocks": INDICES, "counts": INDICES[..., 0] + 3}, ValueError, "to the 2 indices"),
    "counts negative": ({"blocks": INDICES, "counts": INDICES[..., 0] - 1}, ValueError, "got -1 to -1"),
    "counts floats": ({"blocks": INDICES, "counts": INDICES[..., 0] * 0.5}, TypeError, "counts must be int"),
    "counts of another shape": ({"blocks": INDICES, "counts": INDICES[0, ..., 0]}, ValueError, r"\(2, 3\)"),
    "block_size 0": ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    "block_size half": ({"block_size": 0.5}, TypeError, "block_size must be an integer, got 0.5"),
    "block_size of three": ({"block_size": (4, 4, 4)}, ValueError, "block_size must be one number"),
    "engine": ({"engine": "fast"}, ValueError, "engine must be one of"),
}  # fmt: skip


@pytest.mark.bad_input
@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(change, kind, message):
    q, k = torch.randn(1, 4, 48, 4), torch.randn(1, 2, 48, 4)
    block_sparse_attention(q, k, k, **GOOD)
    with pytest.raises(kind, match=message):
        block_sparse_attention(q, k, k, **GOOD | change)


@pytest.mark.bad_input
@pytest.mark.parametrize("options", [{}, {"is_causal": False, "force_diagonal": True}])
def test_more_queries_than_keys_have_no_order(options):
    q, k, blocks = torch.randn(1, 4, 48, 4), torch.randn(1, 2, 32, 4), GOOD["blocks"][..., :2]
    with pytest.raises(ValueError, match="q must be the last of the 32 tokens of k, got 48"):
        block_sparse_attention(q, k, k, blocks, block_size=16, **options)
    assert block_sparse_attention(q, k, k, blocks, block_size=16, is_causal=False).shape == q.shape


def test_names_are_public():
    assert ops.block_sparse_attention is block_sparse_attention
    assert blocked.tile_size(use_kernels=False).rows >= 64  # a block of 64 is one tile
