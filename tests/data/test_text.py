import os
import random
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gatework.data.text import TextCrops, TextWindows, load_standard_library, load_text


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture
def library(tmp_path):
    """Two hundred documents in a few folders."""
    return write(tmp_path, {f"{i % 7}/page{i}.txt": f"page {i}: äé\n" * (1 + i % 5) for i in range(200)})


def documents(split: np.ndarray) -> list[str]:
    pages = split.tobytes().decode().split("\0")
    assert pages.pop() == ""  # every document is ended, the last one too
    return pages


def test_documents_keep_whole_and_apart(library):
    corpus = load_text(library)
    splits = [documents(corpus.split(name)) for name in ("train", "validation", "test")]
    expected = [path.read_text() for path in sorted(library.rglob("*.txt"), key=lambda p: p.as_posix())]
    assert sorted(page for split in splits for page in split) == sorted(expected)
    assert all(splits)
    assert len(splits[0]) > 160
    order = {page: i for i, page in enumerate(expected)}
    assert all(split == sorted(split, key=order.__getitem__) for split in splits)
    assert (corpus.num_documents, corpus.num_skipped, corpus.split_by) == (200, 0, "document")
    assert corpus.num_bytes == sum(len(page.encode()) for page in expected)


def test_more_documents_move_no_other(library):
    before = load_text(library)
    write(library, {"new.txt": "something new\n"})
    after = load_text(library)
    for name in ("train", "validation", "test"):
        assert set(documents(before.split(name))) <= set(documents(after.split(name)))
    assert before.sha256 != after.sha256


def test_digest_is_of_paths_and_contents(tmp_path):
    def digest(name, files):
        return load_text(write(tmp_path / name, files)).sha256

    plain = digest("a", {"one.txt": "1", "two.txt": "22"})
    assert digest("b", {"two.txt": "22", "one.txt": "1"}) == plain
    others = [
        digest("c", {"one.txt": "1", "two.txt": "23"}),
        digest("d", {"one.txt": "1", "tw.txt": "22"}),
        digest("e", {"one.txt": "12", "two.txt": "2"}),
        digest("f", {"one.txt": "1", "two.txt": "22", "three.txt": "3"}),
    ]
    assert len({plain, *others}) == 5
    assert digest("g", {"one.txt": "1", "two.txt": "22", "empty.txt": "", "binary": b"\0"}) == plain


def test_what_is_no_text_is_passed_over(tmp_path):
    write(
        tmp_path,
        {
            "good.txt": "text",
            "empty.txt": "",
            "zero.txt": b"text\0text",
            "latin.txt": "caf\xe9".encode("latin-1"),
            "cut.txt": "é".encode()[:1],
            ".hidden.txt": "hidden",
            ".git/config.txt": "hidden",
        },
    )
    os.mkfifo(tmp_path / "pipe.txt")  # would wait for a writer
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    corpus = load_text(tmp_path)
    assert (corpus.num_documents, corpus.num_skipped, corpus.num_bytes) == (1, 3, 4)


def test_suffixes_choose(library):
    write(library, {"notes.md": "# notes", "data.csv": "1,2"})
    assert load_text(library, suffixes=[".md"]).num_bytes == 7
    assert load_text(library, suffixes=(".md", ".csv")).num_documents == 2


def test_few_documents_are_split_by_position(tmp_path):
    text = "".join(random.Random(1).choices("abc", k=999))
    file = write(tmp_path, {"one.txt": text}) / "one.txt"
    for path in (file, tmp_path):
        corpus = load_text(path)
        assert corpus.split_by == "position"
        assert corpus.train.tobytes().decode() == text[:900]
        assert corpus.validation.tobytes().decode() == text[900:950]
        assert corpus.test.tobytes().decode() == text[950:] + "\0"


@pytest.mark.parametrize("limit", [1, 2, 3, 100, 1000, 10**9])
def test_a_limit_is_kept(library, limit):
    whole, limited = load_text(library), load_text(library, max_bytes=limit)
    assert limited.num_bytes == min(limit, whole.num_bytes)
    assert (limited.sha256 == whole.sha256) == (limit >= whole.num_bytes)
    assert load_text(library, max_bytes=limit).sha256 == limited.sha256


def test_a_limit_cuts_one_document_and_keeps_the_others_whole(library):
    names = ("train", "validation", "test")
    full = {page for name in names for page in documents(load_text(library).split(name))}
    corpus = load_text(library, max_bytes=3001)
    assert corpus.split_by == "document"
    pages = b"".join(corpus.split(name).tobytes() for name in names).split(b"\0")[:-1]
    cut = [page for page in pages if page.decode(errors="replace") not in full]
    assert len(cut) <= 1
    assert all(any(page.encode().startswith(part) for page in full) for part in cut)


def test_standard_library_has_no_tests_and_no_packages():
    root = Path(sysconfig.get_path("stdlib"))
    corpus = load_standard_library()
    assert corpus.num_documents > 400
    assert corpus.split_by == "document"
    assert re.fullmatch(r"Python 3\.\d+\.\S+ standard library", corpus.name)
    assert re.fullmatch("[0-9a-f]{64}", corpus.sha256)
    everything = b"".join(corpus.split(name).tobytes() for name in ("train", "validation", "test"))
    assert (root / "argparse.py").read_bytes() in everything
    foreign = [*root.glob("*/test*/test_*.py"), *root.glob("site-packages/*/__init__.py")]
    foreign = [path.read_bytes() for path in foreign if path.stat().st_size > 500][:20]
    assert not any(content in everything for content in foreign)
    shares = [len(corpus.split(name)) / len(everything) for name in ("train", "validation", "test")]
    assert shares[0] > 0.8
    assert min(shares) > 0.01


def test_crops_follow_from_seed_and_number(library):
    corpus = load_text(library)
    torch.manual_seed(0)
    crops = TextCrops(corpus, 13, num_examples=30, seed=5)
    first = [crops[i] for i in range(30)]
    state = torch.get_rng_state()
    torch.manual_seed(1)
    again = TextCrops(corpus, 13, num_examples=90, seed=5)
    assert all(torch.equal(again[i][0], first[i][0]) for i in reversed(range(30)))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    other = TextCrops(corpus, 13, num_examples=30, seed=6)
    assert sum(torch.equal(other[i][0], first[i][0]) for i in range(30)) < 10
    train = corpus.train.tobytes()
    for inputs, labels in first:
        assert inputs.dtype == labels.dtype == torch.int64
        assert bytes([*inputs.tolist(), labels[-1]]) in train
        assert torch.equal(inputs[1:], labels[:-1])


def test_crops_begin_everywhere(tmp_path):
    corpus = load_text(write(tmp_path, {"a.txt": "".join(map(chr, range(65, 85)))}) / "a.txt")
    assert len(corpus.train) == 19
    starts = {int(inputs[0]) for inputs, _ in TextCrops(corpus, 15, num_examples=200, seed=1)}
    assert starts == set(range(65, 65 + 4))
    assert len(TextCrops(corpus, 18, num_examples=3, seed=1)[0][0]) == 18


@pytest.mark.parametrize("length", [1, 2, 7, 49])
def test_windows_score_every_byte_once(tmp_path, length):
    text = "".join(random.Random(2).choices("abc", k=1000))
    corpus = load_text(write(tmp_path, {"a.txt": text}) / "a.txt")
    windows = TextWindows(corpus, length)
    loaded = list(DataLoader(windows, batch_size=3))
    inputs, labels = (torch.cat([batch[i] for batch in loaded]).flatten() for i in range(2))
    split = corpus.validation.tolist()
    scored = (len(split) - 1) // length * length
    assert len(windows) == scored // length
    assert inputs.tolist() == split[:scored]
    assert labels.tolist() == split[1 : scored + 1]
    with pytest.raises(IndexError):
        windows[len(windows)]


@pytest.mark.bad_input
def test_without_text_the_error_says_where_and_what(tmp_path):
    write(tmp_path, {"image.png": b"\x89PNG\0", "empty.txt": ""})
    where = re.escape(repr(str(tmp_path)))
    with pytest.raises(
        ValueError, match=f"no text in {where}: looked for UTF-8 text files, skipped 1 as binary"
    ):
        load_text(tmp_path)
    with pytest.raises(
        ValueError, match=rf"no text in {where}: looked for UTF-8 text files ending in \.md, \.rst"
    ):
        load_text(tmp_path, suffixes=[".md", ".rst"])
    with pytest.raises(
        ValueError, match="path must be a file or folder of text, but '/no/such' does not exist"
    ):
        load_text("/no/such")
    with pytest.raises(ValueError, match="looked for UTF-8 text, skipped 1 as binary"):
        load_text(tmp_path / "image.png")


@pytest.mark.bad_input
def test_bad_arguments_are_named(tmp_path):
    corpus = load_text(write(tmp_path, {"a.txt": "some text " * 30}))
    with pytest.raises(TypeError, match=r"suffixes must be a list such as \['\.txt'\], got '\.txt'"):
        load_text(tmp_path, suffixes=".txt")
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        load_text(tmp_path, max_bytes=0)
    with pytest.raises(
        ValueError, match=r"length must be below the 271 bytes of the train split of .*, got 271"
    ):
        TextCrops(corpus, 271, num_examples=1, seed=1)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        TextWindows(corpus, 0)
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test', got 'dev'"):
        TextWindows(corpus, 4, split="dev")
    with pytest.raises(IndexError, match=r"index must be in 0 \.\. 2, got 3"):
        TextCrops(corpus, 4, num_examples=3, seed=1)[3]
