import pytest
import torch

from gatework import masks
from gatework.masks import CausalDocument, Document, PrefixLM, PrefixLMDocument, Slices

LENGTHS = [3, 0, 2]


def test_lengths_and_their_sums_build_the_same():
    assert Document([3, 0, 2]) == Document.from_lengths(torch.tensor(LENGTHS))
    assert Document.from_cu_seqlens([0, 3, 3, 5]) == Document((3, 0, 2))
    assert Document(LENGTHS) != CausalDocument(LENGTHS)
    prefix = PrefixLMDocument.from_cu_seqlens(torch.tensor([0, 3, 3, 5]), prefix=1)
    assert repr(prefix) == "PrefixLMDocument(lengths=(3, 0, 2), prefix=1)"


def test_documents_see_themselves_only():
    expected = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool()
    assert torch.equal(Document(LENGTHS).to_dense(5, 5), expected)
    assert torch.equal(CausalDocument(LENGTHS).to_dense(5, 5), expected.tril())


def test_outside_of_all_documents_nothing_is_seen():
    outside = torch.tensor([-1, 5, 9])
    assert not Document(LENGTHS).pairs(outside, outside).any()
    assert not masks.SharedQuestion(LENGTHS).pairs(outside, torch.arange(5)).any()
    assert not masks.CausalBlockwise(LENGTHS).pairs(outside, torch.arange(5)).any()


def test_one_document_is_the_sequence():
    for packed, alone in (
        (CausalDocument([9]), masks.Causal()),
        (PrefixLMDocument([9], 4), PrefixLM(4)),
        (masks.BlockCausalDocument([9], 4), masks.BlockCausal(4)),
    ):
        assert torch.equal(packed.to_dense(9, 9), alone.to_dense(9, 9))


def test_the_authors_prefix_has_one_token_more():
    assert PrefixLM(4, compat="official") == PrefixLM(5)
    assert PrefixLMDocument([9], 4, compat="official") == PrefixLMDocument([9], 5)


def test_the_authors_have_twice_as_many_global_tokens():
    assert masks.GlobalWindow(4) == masks.GlobalWindow(4, 4)
    assert masks.GlobalWindow(4, compat="official") == masks.GlobalWindow(4, 8)


def test_slices_are_aligned_as_they_say():
    shown = Slices.from_ranges([[0, 2], [2, 4], [4, 6], [6, 7]], [[0, 3]] * 4, torch.arange(4)).to_dense(7, 3)
    assert shown.int().tolist() == [
        [1, 1, 1],
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 1],
        [1, 1, 1],
        [0, 1, 1],
        [1, 1, 1],
    ]


def test_slices_paint_what_documents_are():
    slices = Slices([(0, 3, 0, 3, "causal"), (3, 5, 3, 5, 1)])
    assert torch.equal(slices.to_dense(5, 5), CausalDocument(LENGTHS).to_dense(5, 5))
    assert eval(repr(slices), vars(masks)) == slices
    assert not Slices([]).to_dense(3, 4).any()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Document([3, -1]), ValueError, r"lengths\[1\] must be at least 0, got -1"),
        (lambda: Document([3, 1.5]), TypeError, r"lengths\[1\] must be an integer, got 1\.5"),
        (lambda: Document(torch.ones(2, 2).int()), TypeError, r"lengths\[0\] must be an integer"),
        (lambda: Document.from_cu_seqlens([1, 2]), ValueError, r"must begin with 0 and.*got \[1, 2\]"),
        (lambda: Document.from_cu_seqlens([0, 2, 1]), ValueError, "never decrease"),
        (lambda: Document.from_cu_seqlens([]), ValueError, r"must begin with 0.*got \[\]"),
        (lambda: PrefixLM(-1), ValueError, "prefix must be at least 0, got -1"),
        (lambda: PrefixLM(1.5), TypeError, r"prefix must be an integer, got 1\.5"),
        (lambda: PrefixLM(1, compat="paper"), ValueError, "compat must be one of None, official"),
        (lambda: PrefixLMDocument([2], -1), ValueError, "prefix must be at least 0"),
        (lambda: masks.GlobalWindow(-1), ValueError, "window must be at least 0"),
        (lambda: masks.GlobalWindow(1, 2, compat="official"), ValueError, "num_global must be left out"),
        (lambda: masks.BlockCausal(0), ValueError, "block must be at least 1, got 0"),
        (lambda: masks.BlockCausalDocument([3], 0), ValueError, "block must be at least 1"),
        (lambda: Slices([(0, 2, 3)]), ValueError, "slices must be"),
        (lambda: Slices([(0, 2, 3, 2)]), ValueError, "0 <= start <= stop"),
        (lambda: Slices([(0, 2, 3, 4, 4)]), ValueError, "slices must be of a kind.*got 4"),
        (lambda: Slices([(0, 2, 3, 4.5)]), TypeError, "bounds of slices must be an integer"),
        (lambda: Slices.from_ranges([[0, 1]], []), ValueError, "equally many, got 1, 0 and 1"),
    ],
)
def test_wrong_numbers_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()
