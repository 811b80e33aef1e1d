"""Masks as text: what is understood, and that nothing else is, and nothing is run."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatework import masks
from gatework.bench.attention.expressions import mask_classes, parse_mask
from gatework.bench.attention.families import FAMILIES, documents, grid
from gatework.masks import BlockSparse, Causal, Full, Neighborhood, PrefixLM, SlidingWindow

BLOCKS = torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("Causal()", Causal()),
        (" SlidingWindow(256, right=0) ", SlidingWindow(256, 0)),
        (
            "SlidingWindow(N // 8, N - 60 + 2 * 3) & ~Causal() | Full()",
            (SlidingWindow(8, 10) & ~Causal()) | Full(),
        ),
        ("Document.from_lengths([N // 4, 3 * (N // 4)])", masks.Document.from_lengths([16, 48])),
        ("Document.from_lengths(documents(N))", masks.Document.from_lengths([64])),
        (
            "Neighborhood(grid(N), (3, 5), is_causal=(True, False))",
            Neighborhood((8, 8), (3, 5), is_causal=(True, False)),
        ),
        ("BlockSparse.from_map([[True, False], [True, True]], 32)", BlockSparse.from_map(BLOCKS, 32)),
    ],
)
def test_masks_are_built_as_python_would(text, mask):
    assert parse_mask(text, 64) == mask


def test_what_a_mask_prints_is_read_back():
    mask = (SlidingWindow(3, 4) & ~Causal()) | PrefixLM(7)
    assert parse_mask(repr(mask), 10) == mask


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch sprung')",
        "Causal().__class__",
        "PrefixLM(4).__class__(4)",
        "Causal.__init__.__globals__",
        "Causal().pairs(1, 2)",
        "Causal().to_dense(4, 4)",
        "Document._count(1, 2)",
        "(lambda: Causal())()",
        "[Causal() for i in (1,)][0]",
        "Causal() if True else Full()",
        "SlidingWindow(*[1, 2])",
        "SlidingWindow(**{'left': 1, 'right': 2})",
        "SlidingWindow(2 ** 10, 0)",
        "SlidingWindow(9999999999 * 9999999999, 0)",
        "SlidingWindow(1 << 4, 0)",
        "Causal() + Full()",
        "Causal() & True",
        "~3",
        "f'{N}'",
        "open('x')",
        "getattr(Causal, 'x')",
        "Mask()",
        "torch.ones(3)",
        "SlidingWindow(N // 0, 0)",
        "SlidingWindow('a', 0)",
        "SlidingWindow(-1, 0)",
        "Causal(",
        "",
        "N",
        "Causal(); Full()",
        "x := Causal()",
        "(" * 500 + "Causal()" + ")" * 500,
        "~" * 3000 + "Causal()",
        "Causal()" + " " * 5000,
        "BlockSparse.from_map([[1, 2], [3]], 4)",
    ],
)
def test_everything_else_is_an_error_that_quotes_it(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError)) as caught:
        parse_mask(text, 64)
    assert "mask" in str(caught.value).lower() or "known" in str(caught.value)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.bad_input
def test_a_misspelt_mask_is_guessed():
    with pytest.raises(ValueError, match="did you mean 'SlidingWindow'"):
        parse_mask("SlidingWindows(1, 2)", 8)


@pytest.mark.bad_input
@given(st.text(alphabet="Causl(),&|~N0123456789.[]_'\" *+-/", max_size=40))
def test_no_text_does_anything_but_build_a_mask_or_raise(text):
    with contextlib.suppress(TypeError, ValueError):
        assert isinstance(parse_mask(text, 16), masks.Mask)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("length", [64, 1024, 3136])
def test_families_exist_and_fit_their_length(name, length):
    mask = parse_mask(FAMILIES[name], length)
    mask.check(length, length)
    assert 0 < mask.density(length, length) <= 1


def test_families_use_every_kind_of_mask_that_is_public():
    used = " ".join(FAMILIES.values())
    combinations = {"And", "Or", "Not", "Entry", "QueryOffset", "Slices", "Grid"}
    assert [name for name in mask_classes() if name not in combinations and name not in used] == []


@given(st.integers(0, 5000))
def test_documents_fill_the_length_and_grids_have_it(length):
    lengths = documents(length)
    assert sum(lengths) == length
    assert all(lengths)
    rows, columns = grid(length)
    assert rows * columns == length
    assert rows <= columns


def test_documents_of_4096_are_the_fixed_list():
    assert documents(4096) == list(masks.DOCUMENT_LENGTHS)
