import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from gatework.masks import And, Causal, Full, Mask, Or, QueryOffset, SlidingWindow

simple = st.one_of(
    st.just(Full()),
    st.just(Causal()),
    st.builds(SlidingWindow, st.integers(0, 9), st.integers(0, 9)),
)
masks = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(And, inner, inner),
        st.builds(Or, inner, inner),
        st.builds(QueryOffset, inner, st.integers(-9, 9)),
    ),
    max_leaves=4,
)
sizes = st.integers(0, 13)


def allows(mask: Mask, query: int, key: int) -> bool:
    """The meaning of every mask, pair by pair, in plain Python."""
    match mask:
        case Full():
            return True
        case Causal():
            return key <= query
        case SlidingWindow(left, right):
            return query - left <= key <= query + right
        case And(left, right):
            return allows(left, query, key) and allows(right, query, key)
        case Or(left, right):
            return allows(left, query, key) or allows(right, query, key)
        case QueryOffset(inner, offset):
            return allows(inner, query + offset, key)
    raise AssertionError(mask)


@settings(max_examples=100, deadline=None)
@given(mask=masks, q_length=sizes, kv_length=sizes)
def test_to_dense_says_what_the_mask_means(mask, q_length, kv_length):
    dense = mask.to_dense(q_length, kv_length)
    assert dense.dtype == torch.bool
    assert dense.shape == (q_length, kv_length)
    assert dense.tolist() == [[allows(mask, i, j) for j in range(kv_length)] for i in range(q_length)]


@settings(max_examples=50, deadline=None)
@given(mask=masks, other=masks)
def test_masks_are_values(mask, other):
    again = eval(repr(mask))
    assert again == mask
    assert hash(again) == hash(mask)
    assert len({mask, again, other}) == (1 if mask == other else 2)


def test_operators_build_the_combinations():
    causal, window = Causal(), SlidingWindow(2, 1)
    assert causal & window == And(causal, window)
    assert causal | window == Or(causal, window)
    assert repr((causal & window) | Full()) == "((Causal() & SlidingWindow(left=2, right=1)) | Full())"


def test_offsets_add_and_zero_is_nothing():
    assert Causal().with_query_offset(0) == Causal()
    assert Causal().with_query_offset(3).with_query_offset(4) == Causal().with_query_offset(7)
    assert Causal().with_query_offset(3).with_query_offset(-3) == Causal()


def test_values_cannot_be_changed():
    with pytest.raises(AttributeError):
        SlidingWindow(1, 2).left = 3


def test_decoding_rows_are_the_last_rows():
    mask = Causal() & SlidingWindow(4, 0)
    assert torch.equal(mask.with_query_offset(6).to_dense(3, 9), mask.to_dense(9, 9)[6:])


def test_pairs_of_positions():
    mask, rows, columns = SlidingWindow(2, 1), torch.tensor([5, 0, 7]), torch.tensor([4, 6])
    assert torch.equal(mask.pairs(rows, columns), mask.to_dense(8, 8)[rows][:, columns])


@pytest.mark.parametrize(
    "mask",
    [
        Full(),
        Causal(),
        SlidingWindow(40, 3),
        (Causal() & SlidingWindow(9, 9)) | SlidingWindow(0, 50).with_query_offset(7),
    ],
    ids=repr,
)
def test_flex_attention_takes_masks_as_they_are(mask):
    dense = mask.to_dense(130, 140)
    assert torch.equal(create_mask(mask, 2, 3, 130, 140, device="cpu"), dense.expand(2, 3, 130, 140))
    blocks = create_block_mask(mask, None, None, 130, 140, device="cpu", BLOCK_SIZE=64).to_dense()
    padded = torch.nn.functional.pad(dense, (0, 192 - 140, 0, 192 - 130))
    assert torch.equal(blocks[0, 0].bool(), padded.unflatten(0, (3, 64)).unflatten(2, (3, 64)).any(3).any(1))


@pytest.mark.compile
def test_masks_are_traced():
    mask = ((Causal() | Full()) & SlidingWindow(3, 0)).with_query_offset(5)
    torch.compiler.reset()  # other tests count towards the limit of recompilations
    compiled = torch.compile(lambda length: mask.to_dense(4, length), fullgraph=True, backend="eager")
    assert torch.equal(compiled(9), mask.to_dense(4, 9))


@pytest.mark.bad_input
def test_wrong_lengths_and_offsets_are_named():
    with pytest.raises(ValueError, match="q_length must be at least 0, got -1"):
        Full().to_dense(-1, 2)
    with pytest.raises(ValueError, match="kv_length must be at least 0, got -2"):
        Full().to_dense(1, -2)
    with pytest.raises(TypeError, match=r"offset must be an integer, got 1\.5"):
        Causal().with_query_offset(1.5)


@pytest.mark.bad_input
@pytest.mark.parametrize("other", [3, None, torch.ones(2, 2, dtype=torch.bool)])
def test_only_masks_combine(other):
    with pytest.raises(TypeError):
        Causal() & other
    with pytest.raises(TypeError):
        Causal() | other
