import hashlib
import os
import random
import re
import sysconfig
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.data import cutting
from gatework.data.cutting import PART_BYTES, cut_document, cut_words
from gatework.data.documents import files, standard_library
from gatework.data.tokens import load_tokens
from tests.data.corpora import documents, write, write_library


@pytest.fixture
def library(tmp_path):
    return write_library(tmp_path)


def test_documents_keep_whole_and_apart(library):
    corpus = load_tokens(library)
    splits = [documents(corpus.split(name).tokens) for name in ("train", "validation", "test")]
    expected = [path.read_text() for path in sorted(library.rglob("*.txt"), key=lambda p: p.as_posix())]
    assert sorted(page for split in splits for page in split) == sorted(expected)
    assert all(splits)
    assert len(splits[0]) > 160
    order = {page: i for i, page in enumerate(expected)}
    assert all(split == sorted(split, key=order.__getitem__) for split in splits)
    assert (corpus.num_documents, corpus.skipped, corpus.split_by) == (200, {}, "document")
    assert corpus.num_bytes == sum(len(page.encode()) for page in expected)


def test_more_documents_move_no_other(library):
    before = load_tokens(library)
    write(library, {"new.txt": "something new\n"})
    after = load_tokens(library)
    for name in ("train", "validation", "test"):
        assert set(documents(before.split(name).tokens)) <= set(documents(after.split(name).tokens))
    assert before.sha256 != after.sha256


def test_digest_is_of_paths_and_contents(tmp_path):
    def digest(name, files):
        return load_tokens(write(tmp_path / name, files)).sha256

    plain = digest("a", {"one.txt": "1", "two.txt": "22"})
    sized = [len(part).to_bytes(8, "big") + part for part in (b"one.txt", b"1", b"two.txt", b"22")]
    assert plain == hashlib.sha256(b"".join(sized)).hexdigest()
    assert digest("b", {"two.txt": "22", "one.txt": "1"}) == plain
    others = [
        digest("c", {"one.txt": "1", "two.txt": "23"}),
        digest("d", {"one.txt": "1", "tw.txt": "22"}),
        digest("e", {"one.txt": "12", "two.txt": "2"}),
        digest("f", {"one.txt": "1", "two.txt": "22", "three.txt": "3"}),
    ]
    assert len({plain, *others}) == 5
    assert digest("g", {"one.txt": "1", "two.txt": "22", "empty.txt": "", "binary": b"\0"}) == plain


def test_what_is_no_text_is_passed_over_and_counted(tmp_path):
    write(
        tmp_path,
        {
            "good.txt": "text",
            "marked.txt": "\ufeffmore",
            "only_mark.txt": "\ufeff",
            "empty.txt": "",
            "zero.txt": b"text\0text",
            "late_zero.txt": b"a" * 2**21 + b"\0",
            "latin.txt": "caf\xe9".encode("latin-1"),
            "utf16.txt": "wide".encode("utf-16"),
            "utf16be.txt": b"\xfe\xff" + "äöü".encode("utf-16-be"),
            "cut.txt": "é".encode()[:1],
            ".hidden.txt": "hidden",
            ".git/config.txt": "hidden",
        },
    )
    os.mkfifo(tmp_path / "pipe.txt")  # would wait for a writer
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    corpus = load_tokens(tmp_path)
    assert (corpus.num_documents, corpus.num_bytes) == (2, 8)
    assert corpus.skipped == {"binary": 2, "empty": 2, "not UTF-8": 4}
    everything = b"".join(corpus.split(name).tokens.tobytes() for name in ("train", "validation", "test"))
    assert everything == b"text\0more\0"


def test_a_character_over_the_border_of_two_chunks_is_one(tmp_path):
    text = "x" * (2**20 - 1) + "é" + "y" * 10
    write(tmp_path, {"a.txt": text})
    assert load_tokens(tmp_path).num_bytes == len(text.encode())


def test_suffixes_choose(library):
    write(library, {"notes.md": "# notes", "data.csv": "1,2"})
    assert load_tokens(library, suffixes=[".md"]).num_bytes == 7
    assert load_tokens(library, suffixes=(".md", ".csv")).num_documents == 2


def test_few_documents_are_split_by_position(tmp_path):
    text = "".join(random.Random(1).choices("abc", k=999))
    file = write(tmp_path, {"one.txt": text}) / "one.txt"
    for path in (file, tmp_path):
        corpus = load_tokens(path)
        assert corpus.split_by == "position"
        assert corpus.train.tokens.tobytes().decode() == text[:900]
        assert corpus.validation.tokens.tobytes().decode() == text[900:950]
        assert corpus.test.tokens.tobytes().decode() == text[950:] + "\0"


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), limit=st.integers(1, 200))
def test_a_cut_by_position_loses_and_moves_nothing(tmp_path_factory, sizes, limit):
    pages = {f"{i:02}.txt": "aé"[i % 2] * size for i, size in enumerate(sizes)}
    folder = write(tmp_path_factory.mktemp("pages"), pages)
    corpus = load_tokens(folder)
    splits = [corpus.train, corpus.validation, corpus.test]
    joined = b"".join(split.tokens.tobytes() for split in splits)
    assert joined == b"".join(page.encode() + b"\0" for page in pages.values())
    if corpus.split_by == "position":
        cuts = [round(len(joined) * 0.9), round(len(joined) * (0.9 + 0.05))]
        assert [len(split.tokens) for split in splits] == [cuts[0], cuts[1] - cuts[0], len(joined) - cuts[1]]
    for split in splits:
        ends = (split.tokens[:-1] == 0).nonzero()[0] + 1
        assert split.starts.tolist() == ([0, *ends] if len(split.tokens) else [])
        assert split.num_bytes == len(split.tokens)
    whole_characters = load_tokens(folder, tokenizer="bpe", vocab_size=257)
    text = "".join(
        whole_characters.tokenizer.decode(whole_characters.split(name).tokens.tolist())
        for name in ("train", "validation", "test")
    )
    assert text == "".join(page + "<|endoftext|>" for page in pages.values())


@pytest.mark.parametrize("limit", [1, 2, 3, 100, 1000, 10**9])
def test_a_limit_is_kept(library, limit):
    whole, limited = load_tokens(library), load_tokens(library, max_bytes=limit)
    assert limited.num_bytes == min(limit, whole.num_bytes)
    assert (limited.sha256 == whole.sha256) == (limit >= whole.num_bytes)
    assert load_tokens(library, max_bytes=limit).sha256 == limited.sha256


def test_a_limit_cuts_one_document_and_keeps_the_others_whole(library):
    names = ("train", "validation", "test")
    full = {page for name in names for page in documents(load_tokens(library).split(name).tokens)}
    corpus = load_tokens(library, max_bytes=3001)
    assert corpus.split_by == "document"
    pages = b"".join(corpus.split(name).tokens.tobytes() for name in names).split(b"\0")[:-1]
    cut = [page for page in pages if page.decode(errors="replace") not in full]
    assert len(cut) <= 1
    assert all(any(page.encode().startswith(part) for page in full) for part in cut)


def test_mixed_documents_are_the_same_in_another_order(library):
    source = files(library)
    plain, mixed = (list(source.documents(Counter(), mixed=mixed)) for mixed in (False, True))
    assert [document.key for document in plain] == sorted(document.key for document in plain)
    assert sorted(document.key for document in mixed) == [document.key for document in plain]
    assert [document.key for document in mixed] != [document.key for document in plain]


def test_a_file_that_shrinks_is_noticed(tmp_path):
    source = files(write(tmp_path, {"a.txt": "long text"}) / "a.txt")
    document = next(source.documents(Counter()))
    write(tmp_path, {"a.txt": "short"})
    with pytest.raises(ValueError, match=r"a\.txt was changed while it was read"):
        b"".join(document.chunks())


def test_standard_library_has_no_tests_and_no_packages():
    root = Path(sysconfig.get_path("stdlib"))
    corpus = load_tokens()
    assert corpus.num_documents > 400
    assert corpus.split_by == "document"
    assert re.fullmatch(r"Python 3\.\d+\.\S+ standard library", corpus.name)
    assert re.fullmatch("[0-9a-f]{64}", corpus.sha256)
    everything = b"".join(corpus.split(name).tokens.tobytes() for name in ("train", "validation", "test"))
    assert (root / "argparse.py").read_bytes() in everything
    foreign = [*root.glob("*/test*/test_*.py"), *root.glob("site-packages/*/__init__.py")]
    foreign = [path.read_bytes() for path in foreign if path.stat().st_size > 500][:20]
    assert not any(content in everything for content in foreign)
    shares = [len(corpus.split(name).tokens) / len(everything) for name in ("train", "validation", "test")]
    assert shares[0] > 0.8
    assert min(shares) > 0.01


# A text whose parts, of eight bytes here, end everywhere: within words, white space and characters.
texts = st.text(st.sampled_from("ab \n\té語🙂"), max_size=80)


@settings(max_examples=300, deadline=None)
@given(text=texts, chunk=st.integers(1, 30))
def test_parts_are_bounded_and_end_between_characters(text, chunk):
    content = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "PART_BYTES", 8)
        parts = list(cut_document([content]))
        again = list(cut_document(content[i : i + chunk] for i in range(0, len(content), chunk)))
    assert b"".join(parts) == content
    assert parts == again
    assert all(0 < len(part) <= 8 for part in parts)
    assert "".join(part.decode() for part in parts) == text


def test_parts_end_before_white_space():
    lines = ("word " * 30 + "\n\n    ") * 2000
    parts = [part.decode() for part in cut_document([lines.encode()])]
    assert len(parts) > 3
    assert all(len(part) > PART_BYTES // 2 for part in parts[:-1])
    for left, right in pairwise(parts):
        assert not left[-1].isspace()
        assert right[0].isspace()


@settings(max_examples=100, deadline=None)
@given(words=st.lists(st.integers(1, 700), max_size=5), gap=st.integers(1, 600))
def test_words_are_cut_only_if_long(words, gap):
    text = (" " * gap).join("w" * size for size in words)
    pieces = cut_words(text)
    assert "".join(pieces) == text
    longest = max((len(run) for piece in pieces for run in re.findall(r"\S+|\s+", piece)), default=0)
    assert longest <= 256
    if max([*words, gap if len(words) > 1 else 0], default=0) <= 256:
        assert pieces == [text]


def test_a_giant_line_is_cut_in_linear_time():
    """Searching it all for white space at every cut would take hours."""
    start = time.perf_counter()
    parts = list(cut_document([b"x" * 2**25]))
    assert len(parts) == 2**25 // PART_BYTES
    assert time.perf_counter() - start < 10


@pytest.mark.bad_input
def test_without_text_the_error_says_where_and_what(tmp_path):
    write(tmp_path, {"image.png": b"\x89PNG\0", "empty.txt": "", "latin.txt": b"caf\xe9"})
    where = re.escape(repr(str(tmp_path)))
    with pytest.raises(
        ValueError,
        match=f"no text in {where}: looked for UTF-8 text files, skipped 1 binary, 1 empty, 1 not UTF-8",
    ):
        load_tokens(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"no text in {where}: looked for UTF-8 text files ending in \.md, \.rst, skipped none",
    ):
        load_tokens(tmp_path, suffixes=[".md", ".rst"])
    with pytest.raises(
        ValueError, match=r"path must be a file or folder of text, but '/no/such' does not exist"
    ):
        load_tokens("/no/such")
    with pytest.raises(ValueError, match=r"looked for UTF-8 text, skipped 1 binary"):
        load_tokens(tmp_path / "image.png")


@pytest.mark.bad_input
def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"suffixes must be a list such as \['\.txt'\], got '\.txt'"):
        files(tmp_path, suffixes=".txt")
    with pytest.raises(ValueError, match=r"max_bytes must be at least 1, got 0"):
        files(tmp_path, max_bytes=0)
    with pytest.raises(ValueError, match=r"max_bytes must be at least 1, got -1"):
        standard_library(max_bytes=-1)
    with pytest.raises(ValueError, match=r"suffixes belongs to a corpus of your own, not to corpus='stdlib'"):
        load_tokens(suffixes=[".py"])
