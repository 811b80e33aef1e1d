import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gatework.data import token_build, token_store
from gatework.data.documents import FileSource
from gatework.data.tokenizer import train_bpe
from gatework.data.tokens import TokenCorpus, load_tokens
from gatework.files import FileError
from tests.data.corpora import documents, write, write_library

NAMES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return write_library(tmp_path_factory.mktemp("library"))


def assert_same(first: TokenCorpus, second: TokenCorpus) -> None:
    for name in NAMES:
        one, two = first.split(name), second.split(name)
        assert np.array_equal(one.tokens, two.tokens)
        assert np.array_equal(one.starts, two.starts)
        assert one.tokens.dtype == two.tokens.dtype
        assert one.num_bytes == two.num_bytes
    facts = ("name", "sha256", "num_documents", "num_bytes", "skipped", "split_by")
    assert [getattr(first, fact) for fact in facts] == [getattr(second, fact) for fact in facts]
    assert first.tokenizer.identity == second.tokenizer.identity


def test_bpe_has_the_documents_of_bytes(library):
    corpus, plain = load_tokens(library, tokenizer="bpe", vocab_size=290), load_tokens(library)
    assert corpus.tokenizer.vocab_size == 290
    for name in NAMES:
        split = corpus.split(name)
        assert split.tokens.dtype == np.uint16
        assert (split.tokens == 0).nonzero()[0].tolist() == [*(split.starts[1:] - 1), len(split.tokens) - 1]
        pages = [
            corpus.tokenizer.decode(split.tokens[a : b - 1].tolist())
            for a, b in zip(split.starts, [*split.starts[1:], len(split.tokens)], strict=True)
        ]
        assert pages == documents(plain.split(name).tokens)
        assert split.num_bytes == plain.split(name).num_bytes
        assert corpus.tokenizer.token_bytes()[split.tokens].sum() == split.num_bytes
    assert len(corpus.train.tokens) < len(plain.train.tokens) / 2


def test_bpe_is_trained_on_the_training_split_alone(tmp_path):
    """Were it trained on all, the frequent word of the test split would be one token."""
    text = "".join(f"{i} " for i in range(1000))
    text = text[:3000] + "zq" * 400
    corpus = load_tokens(write(tmp_path, {"a.txt": text}) / "a.txt", tokenizer="bpe", vocab_size=280)
    assert corpus.split_by == "position"
    train = corpus.train.tokens
    assert corpus.tokenizer.decode(train.tolist()) == text[: round(3801 * 0.9)]
    only_train = load_tokens(
        write(tmp_path, {"b.txt": text[: round(3801 * 0.9)] + "yw" * 195 + "v"}) / "b.txt",
        tokenizer="bpe",
        vocab_size=280,
    )
    assert only_train.tokenizer.identity == corpus.tokenizer.identity


def test_bpe_is_trained_on_a_bounded_sample(library, monkeypatch):
    samples = []

    def recorded(texts, vocab_size):
        samples.append(list(texts))
        return train_bpe(samples[-1], vocab_size)

    monkeypatch.setattr(token_build, "train_bpe", recorded)
    corpus = load_tokens(library, tokenizer="bpe", vocab_size=262)
    assert sum(map(len, samples[0])) + len(samples[0]) == corpus.train.num_bytes
    monkeypatch.setattr(token_build, "BPE_SAMPLE_BYTES", 500)
    load_tokens(library, tokenizer="bpe", vocab_size=258)
    assert 400 < sum(map(len, samples[1])) <= 500
    assert set(samples[1]) < set(samples[0])
    assert samples[1] != sorted(samples[1])  # from all over the folder


def test_a_saved_tokenizer(library, tmp_path):
    first = load_tokens(library, tokenizer="bpe", vocab_size=290)
    first.tokenizer.pretrained().save_pretrained(tmp_path)
    second = load_tokens(library, tokenizer=str(tmp_path))
    for name in NAMES:
        assert np.array_equal(first.split(name).tokens, second.split(name).tokens)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("part", [None, "0/page0.txt"])
def test_tokens_on_disk_are_those_in_memory(library, tmp_path, tokenizer, part):
    path = library if part is None else library / part
    options = {"tokenizer": tokenizer, "vocab_size": 262 if tokenizer == "bpe" and part is None else None}
    if part is not None and tokenizer == "bpe":
        options = {"tokenizer": "bpe", "vocab_size": 257}
    stored = load_tokens(path, cache=tmp_path, **options)
    assert_same(stored, load_tokens(path, **options))
    assert_same(stored, load_tokens(path, cache=tmp_path, **options))
    assert isinstance(stored.train.tokens, np.memmap)
    (folder,) = tmp_path.iterdir()
    assert np.array_equal(np.load(folder / "train.npy"), stored.train.tokens)


def test_tokens_on_disk_go_to_other_processes_by_path(library, tmp_path):
    tokens = load_tokens(library, cache=tmp_path).train.tokens
    sent = pickle.dumps(tokens)
    assert len(sent) < 1000 < len(tokens)
    received = pickle.loads(sent)
    assert isinstance(received, np.memmap)
    assert np.array_equal(received, tokens)
    assert pickle.loads(pickle.dumps(tokens[5:9])).tolist() == tokens[5:9].tolist()


def test_a_split_may_be_empty_on_disk(tmp_path):
    path = write(tmp_path, {"a.txt": "ab"}) / "a.txt"
    assert_same(load_tokens(path, cache=tmp_path / "cache"), load_tokens(path))


def test_the_second_time_the_text_is_not_read(library, tmp_path, monkeypatch):
    first = load_tokens(library, tokenizer="bpe", vocab_size=262, cache=tmp_path)

    def read(*arguments, **options):
        raise AssertionError("the text was read again")

    monkeypatch.setattr(FileSource, "documents", read)
    assert_same(first, load_tokens(library, tokenizer="bpe", vocab_size=262, cache=tmp_path))
    for other in ({"vocab_size": 263}, {"vocab_size": 262, "max_bytes": 5000}):
        with pytest.raises(AssertionError, match=r"read again"):
            load_tokens(library, tokenizer="bpe", cache=tmp_path, **other)


def test_a_changed_file_makes_new_tokens(tmp_path):
    write_library(tmp_path / "text")
    first = load_tokens(tmp_path / "text", cache=tmp_path / "cache")
    write(tmp_path / "text", {"0/page0.txt": "changed"})
    second = load_tokens(tmp_path / "text", cache=tmp_path / "cache")
    assert first.sha256 != second.sha256
    assert_same(second, load_tokens(tmp_path / "text"))


# Stops in the middle of the build, with files begun, for as long as it is told.
BUILD = """
import sys, time
from gatework.data import token_store
from gatework.data.tokens import load_tokens
write = token_store.write_tokens
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(float(sys.argv[3]))
    return write(*arguments)
token_store.write_tokens = slow
load_tokens(sys.argv[1], cache=sys.argv[2])
"""


def build_in_another_process(library: Path, cache: Path, seconds: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(library), str(cache), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_build_is_not_taken_for_whole(library, tmp_path):
    with build_in_another_process(library, tmp_path, 600) as process:
        process.send_signal(signal.SIGKILL)
    (folder,) = tmp_path.iterdir()
    left = sorted(path.name for path in folder.iterdir())
    assert any(name.startswith(".train.npy.") for name in left)
    assert "corpus.json" not in left
    assert_same(load_tokens(library, cache=tmp_path), load_tokens(library))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".lock", "corpus.json", *(f"{name}{part}" for name in NAMES for part in (".npy", ".starts.npy"))]
    )


@pytest.mark.parametrize("killed", [False, True])
def test_who_comes_second_waits(library, tmp_path, monkeypatch, caplog, killed):
    expected = load_tokens(library)
    builds = []
    write_tokens = token_store.write_tokens
    monkeypatch.setattr(token_store, "write_tokens", lambda *a: (builds.append(1), write_tokens(*a))[1])
    with build_in_another_process(library, tmp_path, 600 if killed else 1) as process:
        found = []
        reader = threading.Thread(target=lambda: found.append(load_tokens(library, cache=tmp_path)))
        with caplog.at_level(logging.INFO, logger="gatework"):
            reader.start()
            time.sleep(0.5)
        assert found == []
        if killed:
            process.send_signal(signal.SIGKILL)  # the lock goes with it, and the waiting one takes over
        reader.join(60)
    assert_same(found[0], expected)
    assert len(builds) == killed
    assert f"process {process.pid} is already working in" in caplog.text


def test_threads_build_once(library, tmp_path, monkeypatch):
    builds = []
    write_tokens = token_store.write_tokens

    def counted(*arguments):
        builds.append(1)
        time.sleep(0.3)
        return write_tokens(*arguments)

    monkeypatch.setattr(token_store, "write_tokens", counted)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load_tokens(library, cache=tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 3
    for corpus in found:
        assert_same(corpus, found[0])


def test_a_failed_build_leaves_nothing_that_counts(library, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"cannot write .*\.npy: No space left on device"):
            load_tokens(library, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert_same(load_tokens(library, cache=tmp_path), load_tokens(library))


def test_damage_is_named(library, tmp_path):
    load_tokens(library, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    whole = (folder / "train.npy").read_bytes()
    for damaged in (whole[:-1], whole[:50], b""):
        (folder / "train.npy").write_bytes(damaged)
        with pytest.raises(FileError, match=rf"cannot read .*train\.npy \(.*\); delete {folder}, then run"):
            load_tokens(library, cache=tmp_path)
    (folder / "corpus.json").write_text("{")
    with pytest.raises(FileError, match=r"corpus\.json is not valid JSON .*delete"):
        load_tokens(library, cache=tmp_path)


def test_a_cache_that_cannot_be_is_named(library, tmp_path):
    write(tmp_path, {"file": "no folder"})
    with pytest.raises(FileError, match=r"cache must be a folder to write to: cannot make .*file/"):
        load_tokens(library, cache=tmp_path / "file")


@pytest.mark.parametrize("kind", ["documents", "one file"])
def test_memory_stays_below_the_corpus(tmp_path, kind):
    """Thirty megabytes of text, read and written in a third of that."""
    size, count = 30_000_000, 300 if kind == "documents" else 1
    text = (" ".join(f"word{i % 997}" for i in range(200_000)) + "\n").encode()
    page = (text * (size // count // len(text) + 1))[: size // count]
    for i in range(count):
        write(tmp_path / "text", {f"{i}.txt": page})
    del page, text
    tracemalloc.start()
    try:
        corpus = load_tokens(tmp_path / "text", cache=tmp_path / "cache")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert corpus.num_bytes == size
    assert sum(len(corpus.split(name).tokens) for name in NAMES) == size + count
    assert peak < size / 3


@pytest.fixture
def jsonl(tmp_path):
    """Two hundred rows, with some that are no text."""
    rows = [{"text": f"row {i}: é\n" * (1 + i % 4), "number": i} for i in range(200)]
    rows[10:10] = [{"text": "", "number": -1}, {"text": None, "number": -2}, {"text": "a\0b", "number": -3}]
    rows[50]["text"] = "\ufeff" + rows[50]["text"]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_data_set(jsonl, tmp_path):
    corpus = load_tokens(dataset=str(jsonl))
    assert corpus.name == f"data set {jsonl}, split train, column text"
    assert (corpus.num_documents, corpus.split_by) == (200, "document")
    assert corpus.skipped == {"binary": 1, "empty": 2}
    pages = [page for name in NAMES for page in documents(corpus.split(name).tokens)]
    expected = [f"row {i}: é\n" * (1 + i % 4) for i in range(200)]
    assert sorted(pages) == sorted(expected)
    order = {page: i for i, page in enumerate(expected)}
    for name in NAMES:
        numbers = [order[page] for page in documents(corpus.split(name).tokens)]
        assert numbers == sorted(numbers)
    assert_same(load_tokens(dataset=str(jsonl), cache=tmp_path / "cache"), corpus)


def test_more_rows_move_no_other(jsonl):
    before = load_tokens(dataset=str(jsonl))
    jsonl.write_text(json.dumps({"text": "first"}) + "\n" + jsonl.read_text())
    after = load_tokens(dataset=str(jsonl))
    for name in NAMES:
        assert set(documents(before.split(name).tokens)) <= set(documents(after.split(name).tokens))
    assert before.sha256 != after.sha256


def test_the_beginning_of_a_data_set(jsonl):
    corpus = load_tokens(dataset=str(jsonl), max_bytes=1501)
    assert corpus.num_bytes == 1501
    everything = {
        page for name in NAMES for page in documents(load_tokens(dataset=str(jsonl)).split(name).tokens)
    }
    pages = b"".join(corpus.split(name).tokens.tobytes() for name in NAMES).split(b"\0")[:-1]
    assert sum(page.decode(errors="replace") not in everything for page in pages) == 1


def test_data_sets_of_other_forms(jsonl, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list([{"text": f"text {i}"} for i in range(30)])
    rows.to_parquet(tmp_path / "folder" / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"part": rows}).save_to_disk(tmp_path / "splits")
    expected = load_tokens(dataset=str(tmp_path / "folder" / "rows.parquet")).sha256
    assert load_tokens(dataset=str(tmp_path / "folder")).sha256 == expected
    assert load_tokens(dataset=str(tmp_path / "saved"), cache=tmp_path / "cache").sha256 == expected
    assert load_tokens(dataset=str(tmp_path / "splits"), dataset_split="part").sha256 == expected
    with pytest.raises(ValueError, match=r"dataset_split must be one of part, got 'train'"):
        load_tokens(dataset=str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"split 'dev' cannot be opened: Bad split: dev"):
        load_tokens(dataset=str(tmp_path / "folder"), dataset_split="dev")
    with pytest.raises(ValueError, match=r"configuration 'english'|'english' not found"):
        load_tokens(dataset=str(tmp_path / "folder"), dataset_config="english")


@pytest.mark.bad_input
def test_bad_data_sets_are_named(jsonl, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"text_column must be a column of .*rows\.jsonl, got 'txt'; did you mean 'text'\?"
    ):
        load_tokens(dataset=str(jsonl), text_column="txt")
    with pytest.raises(
        TypeError, match=r"text_column must name a column of text, but 'number' of .* holds int"
    ):
        load_tokens(dataset=str(jsonl), text_column="number")
    write(tmp_path, {"none.jsonl": '{"text": ""}\n{"text": null}', "text.md": "text"})
    with pytest.raises(ValueError, match=r"no text in data set .*none\.jsonl.*: skipped 2 empty"):
        load_tokens(dataset=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"a file must end in \.json, .*; for plain text use corpus"):
        load_tokens(dataset=str(tmp_path / "text.md"))
    with pytest.raises(ValueError, match=r"dataset='\./no/such' must be a path .* and does not exist"):
        load_tokens(dataset="./no/such")
    with pytest.raises(ValueError, match=r"dataset replaces corpus and suffixes, got .* with corpus='mine'"):
        load_tokens("mine", dataset=str(jsonl))
    with pytest.raises(ValueError, match=r"dataset replaces corpus and suffixes, .* suffixes=\['\.txt'\]"):
        load_tokens(dataset=str(jsonl), suffixes=[".txt"])
    with pytest.raises(ValueError, match=r"max_bytes must be at least 1, got 0"):
        load_tokens(dataset=str(jsonl), max_bytes=0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'gatework\[datasets\]'"):
        load_tokens(dataset=str(jsonl))


@pytest.mark.bad_input
def test_options_that_do_not_go_together_are_named(library):
    with pytest.raises(
        ValueError, match=r"vocab_size belongs to tokenizer='bpe', got 300 with tokenizer='bytes'"
    ):
        load_tokens(library, vocab_size=300)
    with pytest.raises(ValueError, match=r"text_column belongs to a dataset, got 'body' without one"):
        load_tokens(library, text_column="body")
    with pytest.raises(ValueError, match=r"dataset_config belongs to a dataset, got 'en' without one"):
        load_tokens(library, dataset_config="en")
    with pytest.raises(ValueError, match=r"vocab_size must be at most .* got 4096"):
        load_tokens(library, tokenizer="bpe")
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257"):
        load_tokens(library, tokenizer="bpe", vocab_size=256)
