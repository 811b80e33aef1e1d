"""The pooled attention map, by query block and by query, against its definition; losses against KLDivLoss."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div

from gatework import ops
from gatework.bench import memory
from gatework.masks import BlockSparse, CausalDocument, Full, SlidingWindow
from gatework.ops import (
    attention_pooling,
    pooled_attention_map,
    pooled_attention_rows,
    pooled_map_loss,
    pooled_rows_loss,
)
from gatework.ops.attention_pooling import pooled_attention_map_reference, pooled_attention_rows_reference
from tests.ops.test_attention import DOUBLE, randn

close = {"rtol": 0, "atol": 1e-12}


def random_mask(data, batch, heads, q_length, kv_length):
    """A mask that goes with a call, or none."""
    kind = data.draw(st.sampled_from(["none", "window", "full", "documents", "blocks"]))
    if kind == "window":
        return SlidingWindow(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)))
    if kind == "documents" and q_length == kv_length > 3:
        return CausalDocument([3, kv_length - 3])
    if kind == "blocks" and batch:
        gen = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        shape = data.draw(st.sampled_from([1, batch])), data.draw(st.sampled_from([1, heads]))
        block_map = torch.rand(*shape, -(-q_length // 5), -(-kv_length // 6), generator=gen) < 0.4
        return BlockSparse.from_map(block_map, (5, 6), q_length=q_length, kv_length=kv_length)
    return Full() if kind == "full" else None


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_both_maps_equal_their_definitions(data):
    gen = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    batch, kv_heads, groups = (
        data.draw(st.integers(0, 2)),
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 3)),
    )
    kv_length = data.draw(st.sampled_from([0, 1, 5, 16, 37, 50]))
    q_length = min(kv_length, data.draw(st.sampled_from([0, 1, 20, kv_length])))
    heads = kv_heads * groups
    q, k = randn(batch, heads, q_length, 3, gen=gen), randn(batch, kv_heads, kv_length, 3, gen=gen)
    size = data.draw(st.sampled_from([1, 4, 7, 16, 64]))
    mask = random_mask(data, batch, heads, q_length, kv_length)
    options = {"block_size": size, "mask": mask, "scale": data.draw(st.sampled_from([None, -3.0]))}
    more = {"is_causal": data.draw(st.booleans()), "normalize": data.draw(st.booleans())}
    with pytest.MonkeyPatch.context() as patch:  # small tiles, so that short sequences have many
        patch.setattr(attention_pooling, "_ROWS", data.draw(st.sampled_from([3, 8, 128])))
        patch.setattr(attention_pooling, "_SCORES", data.draw(st.sampled_from([1, 500, 1 << 22])))
        by_tile, by_query = (
            pooled_attention_map(q, k, **options, **more),
            pooled_attention_rows(q, k, **options),
        )
    torch.testing.assert_close(by_tile, pooled_attention_map_reference(q, k, **options, **more), **close)
    torch.testing.assert_close(by_query, pooled_attention_rows_reference(q, k, **options), **close)


def test_the_definition_of_the_map():
    q, k = randn(1, 4, 10, 3), randn(1, 2, 10, 3)
    scores = q @ k.repeat_interleave(2, 1).mT / 3**0.5
    weights = scores.masked_fill(torch.ones(10, 10, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    pooled = pooled_attention_map_reference(q, k, block_size=4, normalize=False)
    by_query = pooled_attention_rows_reference(q, k, block_size=4)
    for row in range(3):
        for column in range(3):
            tile = weights[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(pooled[:, :, row, column], tile.amax((2, 3)), **close)
    earlier = torch.stack([weights[0, :2, 9, :4].max(), weights[0, :2, 9, 4:8].max(), torch.tensor(0.0)])
    torch.testing.assert_close(by_query[0, 0, 9], earlier / (earlier.sum() + 1e-9), **close)


def test_the_map_of_later_queries_is_the_end_of_the_whole():
    q, k = randn(1, 2, 96, 4), randn(1, 2, 96, 4)
    whole = pooled_attention_map(q, k, block_size=16)
    torch.testing.assert_close(pooled_attention_map(q[:, :, 64:], k, block_size=16), whole[:, :, 4:], **close)
    by_query = pooled_attention_rows(q, k, block_size=16)
    last = pooled_attention_rows(q[:, :, -1:], k, block_size=16)
    torch.testing.assert_close(last, by_query[:, :, -1:], **close)


def test_rows_sum_to_one_or_nothing():
    q = randn(1, 2, 80, 4)
    by_tile = pooled_attention_map(q, q, block_size=16, mask=SlidingWindow(5, 0) & ~SlidingWindow(0, 0))
    assert by_tile[:, :, 0, 0].eq(1).all()  # query 0 sees nothing, and is not what the tile is about
    torch.testing.assert_close(by_tile.sum(-1), torch.ones(1, 2, 5, dtype=DOUBLE))
    nothing = pooled_attention_map(q, q, block_size=16, mask=~Full())
    assert not nothing.any()
    by_query = pooled_attention_rows(q, q, block_size=16)
    assert not by_query[:, :, :16].any()
    torch.testing.assert_close(
        by_query[:, :, 16:].sum(-1), torch.ones(1, 2, 64, dtype=DOUBLE), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precisions_are_computed_in_float32(dtype):
    q, k = randn(1, 2, 50, 8, dtype=dtype), randn(1, 1, 50, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = pooled_attention_map(q, k, block_size=8)
    assert found.dtype == torch.float32
    wanted = pooled_attention_map_reference(q.double(), k.double(), block_size=8)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def test_large_scores_stay_finite():
    q = 1e4 * randn(1, 1, 40, 4, dtype=torch.float32)
    for found in (pooled_attention_map(q, q, block_size=8), pooled_attention_rows(q, q, block_size=8)):
        assert found.isfinite().all()


def test_no_gradient_goes_through_a_target():
    q = randn(1, 1, 20, 4).requires_grad_()
    assert not pooled_attention_map(q, q, block_size=8).requires_grad
    assert not pooled_attention_rows(q, q, block_size=8).requires_grad


@pytest.mark.skipif(not memory.is_available(), reason="this system forgets no peak of memory")
@pytest.mark.parametrize("name", ["pooled_attention_map", "pooled_attention_rows"])
def test_memory_is_linear_in_the_length(name):
    program = f"""
import torch
from gatework import ops
from gatework.bench.memory import peak_of
torch.set_num_threads(1)
q = torch.randn(1, 1, 8192, 16)
print(peak_of(lambda: ops.{name}(q[:, :, :300], q[:, :, :300]), lambda: ops.{name}(q, q)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 48 << 20  # the whole map alone has 256 MB


# --- losses ---


@settings(max_examples=40, deadline=None)
@given(blocks=st.integers(1, 9), seed=st.integers(0, 99), first=st.integers(0, 8), masked=st.booleans())
def test_the_map_loss_is_kl_div_over_all_elements(blocks, seed, first, masked):
    gen = torch.Generator().manual_seed(seed)
    q, logits = randn(2, 2, 8 * blocks, 4, gen=gen), randn(2, 2, blocks, blocks, gen=gen)
    target = pooled_attention_map(q, q, block_size=8)
    later = torch.ones(blocks, blocks, dtype=torch.bool).triu(1)
    row = min(first, blocks - 1)
    log_p = logits.masked_fill(later, torch.finfo(DOUBLE).min).log_softmax(-1)
    wanted = kl_div(log_p[:, :, row:], target[:, :, row:], reduction="none").mean()
    given_logits = logits.masked_fill(later, -torch.inf) if masked else logits
    torch.testing.assert_close(pooled_map_loss(given_logits, target, first_row=row), wanted, **close)
    assert torch.equal(
        pooled_map_loss(logits, target), pooled_map_loss(logits, target, first_row=blocks // 4)
    )


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_losses(masked):
    q = randn(1, 2, 22, 4)
    by_tile, by_query = pooled_attention_map(q, q, block_size=8), pooled_attention_rows(q, q, block_size=8)
    logits = randn(1, 2, 3, 3)
    if masked:  # as a model may give them
        logits = logits.masked_fill(torch.ones(3, 3, dtype=torch.bool).triu(1), -torch.inf)
    leaf = logits.requires_grad_()
    pooled_map_loss(leaf, by_tile, first_row=0).backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad.triu(1).any()
    assert torch.autograd.gradcheck(
        lambda x: pooled_map_loss(x, by_tile, first_row=0), randn(1, 2, 3, 3).requires_grad_()
    )
    rows = randn(1, 2, 22, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pooled_rows_loss(x, by_query, block_size=8, first_row=0), rows)


def test_rows_without_an_earlier_block_add_nothing():
    q, logits = randn(1, 2, 32, 4), randn(1, 2, 32, 4)
    target = pooled_attention_rows(q, q, block_size=8)
    whole = pooled_rows_loss(logits, target, block_size=8, first_row=0)
    without_first = pooled_rows_loss(logits, target, block_size=8, first_row=8)
    torch.testing.assert_close(whole * 32, without_first * 24, **close)
    silent = pooled_rows_loss(torch.full_like(logits, -torch.inf), torch.zeros_like(target), block_size=8)
    assert silent == 0


def test_the_least_loss_is_the_target():
    q = randn(1, 2, 64, 4)
    target = pooled_attention_map(q, q, block_size=8)
    assert abs(float(pooled_map_loss(target.log(), target, first_row=0))) < 1e-12
    assert float(pooled_map_loss(torch.zeros_like(target), target, first_row=0)) > 1e-3


# --- bad input ---

BAD = {
    "block_size": ({"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    "mask": ({"mask": torch.ones(40, 40, dtype=torch.bool)}, TypeError, "mask must be a gatework.masks.Mask"),
    "mask of another size": ({"mask": CausalDocument([10, 20])}, ValueError, "q_length must be 30"),
    "heads": ({"k": torch.randn(1, 3, 40, 4)}, ValueError, "heads of k must divide those of q, 4, got 3"),
    "dtype": ({"k": torch.ones(1, 2, 40, 4).long()}, ValueError, "k must be floating point"),
    "more queries": ({"k": torch.randn(1, 2, 30, 4)}, ValueError, "last of the 30 tokens of k, got 40"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [pooled_attention_map, pooled_attention_rows])
@pytest.mark.parametrize(("change", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(function, change, kind, message):
    call = {"q": torch.randn(1, 4, 40, 4), "k": torch.randn(1, 2, 40, 4)}
    function(**call)
    with pytest.raises(kind, match=message):
        function(**call | change)


@pytest.mark.bad_input
def test_bad_losses():
    square, rows = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 30, 4)
    with pytest.raises(ValueError, match=r"got \(1, 2, 4, 4\) and \(1, 2, 3, 4\)"):
        pooled_map_loss(square, square[:, :, :3])
    with pytest.raises(ValueError, match="logits and target must have one shape"):
        pooled_map_loss(rows, rows)
    with pytest.raises(ValueError, match="first_row must be less than the 4 rows, got 4"):
        pooled_map_loss(square, square, first_row=4)
    with pytest.raises(ValueError, match="blocks of 4"):
        pooled_rows_loss(rows, rows, block_size=4)
    with pytest.raises(ValueError, match="first_row must be at least 0, got -1"):
        pooled_rows_loss(rows, rows, block_size=8, first_row=-1)


def test_names_are_public():
    assert {"pooled_attention_map", "pooled_attention_rows", "pooled_map_loss", "pooled_rows_loss"} <= {
        *ops.__all__
    }
