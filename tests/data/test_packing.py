import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data.loader import ResumableLoader
from gatework.data.packing import PackedRows, PaddedRows
from gatework.data.tokens import TokenSplit

END = 7


def split_of(documents: list[list[int]], ended: bool = True) -> TokenSplit:
    stream = [token for document in documents for token in (*document, END)]
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    return TokenSplit(np.array(stream if ended else stream[:-1], np.uint16), starts, 0)


def rows_of(rows) -> list[torch.Tensor]:
    assert len(rows) > 0
    items = [rows[i] for i in range(len(rows))]
    assert all(part.dtype == torch.int64 and part.shape == (rows.length,) for item in items for part in item)
    return [torch.stack(column) for column in zip(*items, strict=True)]


def read_back(inputs, labels, seq_idx) -> dict[int, list[int]]:
    """The labels of each document in the order of the rows; inputs are checked on the way."""
    read: dict[int, list[int]] = {}
    for row in zip(inputs.tolist(), labels.tolist(), seq_idx.tolist(), strict=True):
        for token, label, document in zip(*row, strict=True):
            if document < 0:
                assert (token, label) == (END, -100)
                continue
            before = read.setdefault(document, [])
            assert token == (before[-1] if before else END)
            before.append(label)
    return read


# Documents without a token, of one, and longer than a row; tokens may equal the end.
pages = st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=9)
settings.register_profile("rows", max_examples=150, deadline=None)


@settings(settings.get_profile("rows"))
@given(documents=pages, length=st.integers(1, 11), ended=st.booleans(), seed=st.integers(0, 99))
def test_every_token_is_a_label_once(documents, length, ended, seed):
    documents[-1] = [*documents[-1], 1]  # what is left when the last end is cut off
    split = split_of(documents, ended)
    expected = {i: [*document, END] for i, document in enumerate(documents)}
    if not ended:
        expected[len(documents) - 1].pop()
    for rows in (PackedRows(split, END, length, seed=seed), PaddedRows(split, END, length)):
        assert read_back(*rows_of(rows)) == expected


@settings(settings.get_profile("rows"))
@given(documents=pages, length=st.integers(1, 11), seed=st.integers(0, 99))
def test_packed_rows_are_full_and_shuffled(documents, length, seed):
    rows = PackedRows(split_of(documents), END, length, seed=seed)
    total = sum(len(document) + 1 for document in documents)
    assert len(rows) == -(-total // length)
    seq_idx = rows_of(rows)[2].flatten()
    assert (seq_idx >= 0).tolist() == [i < total for i in range(len(seq_idx))]
    # It changes exactly where a document begins, that is after each end of one.
    sizes = [len(documents[i]) + 1 for i in rows.order]
    assert sorted(rows.order) == list(range(len(documents)))
    assert seq_idx[:total].tolist() == np.repeat(rows.order, sizes).tolist()
    again = PackedRows(split_of(documents), END, length, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(again[len(rows) - 1], rows[len(rows) - 1], strict=True))


@settings(settings.get_profile("rows"))
@given(documents=pages, length=st.integers(1, 11))
def test_padded_rows_hold_one_document(documents, length):
    rows = PaddedRows(split_of(documents), END, length)
    assert len(rows) == sum(-(-(len(document) + 1) // length) for document in documents)
    _, labels, seq_idx = rows_of(rows)
    for row, documents_of_row in zip(labels, seq_idx, strict=True):
        used = int((row != -100).sum())
        assert used > 0
        assert len(documents_of_row[:used].unique()) == 1
        assert (documents_of_row[used:] == -1).all()
    assert seq_idx[:, 0].tolist() == sorted(seq_idx[:, 0].tolist())


def test_another_seed_is_another_order():
    split = split_of([[i] for i in range(50)])
    orders = {tuple(PackedRows(split, END, 8, seed=seed).order) for seed in range(5)}
    assert len(orders) == 5


def test_a_loader_reads_them():
    split = split_of([[1, 2, 3], [4], [5, 6]])
    loader = ResumableLoader(PackedRows(split, END, 4, seed=0), 2, seed=1, shuffle=True, collate=list)
    rows = [row for batch in loader for row in batch]
    read = sorted(label for _, labels, _ in rows for label in labels.tolist())
    assert read == sorted([1, 2, 3, 4, 5, 6, *[END] * 3, *[-100] * 3])


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    split = split_of([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"length must be at least 1, got 0"):
        PaddedRows(split, END, 0)
    with pytest.raises(TypeError, match=r"length must be an integer, got 2.5"):
        PackedRows(split, END, 2.5, seed=0)
    with pytest.raises(ValueError, match=r"seed must be at least 0, got -1"):
        PackedRows(split, END, 2, seed=-1)
    with pytest.raises(ValueError, match=r"split must have a document, got one without tokens"):
        PaddedRows(TokenSplit(np.zeros(0, np.uint8), np.zeros(0, np.int64), 0), END, 4)
    for rows in (PackedRows(split, END, 2, seed=0), PaddedRows(split, END, 2)):
        with pytest.raises(IndexError, match=r"index must be in 0 \.\. 1, got 2"):
            rows[2]
