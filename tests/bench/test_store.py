"""The directory of a benchmark: it belongs to its options, and a broken file is named."""

from __future__ import annotations

import json

import pytest

from gatework.bench.store import BenchStore, slug
from gatework.files import FileError

OPTIONS = {"lengths": [16], "threads": 1}
RECORD = {"id": "a", "cell": {}, "status": "refused", "reason": "no"}


@pytest.fixture
def store(tmp_path):
    store = BenchStore(tmp_path / "bench", "attention")
    with store.opened(OPTIONS, overwrite=False):
        store.write(RECORD)
    return store


def enter(store, options, *, overwrite=False):
    with store.opened(options, overwrite=overwrite):
        pass


def test_the_same_options_find_what_was_stored(store):
    with store.opened(OPTIONS, overwrite=False):
        assert store.read_all()["a"]["reason"] == "no"
    assert store.options() == OPTIONS


@pytest.mark.bad_input
def test_other_options_are_refused_by_name_and_keep_the_files(store):
    with pytest.raises(FileError, match=r"lengths is \[32\], there \[16\].*--overwrite"):
        enter(store, OPTIONS | {"lengths": [32]})
    assert [*store.read_all()] == ["a"]
    with store.opened(OPTIONS | {"lengths": [32]}, overwrite=True):
        assert store.read_all() == {}
    assert store.options()["lengths"] == [32]


@pytest.mark.bad_input
def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FileError, match=r"holds other files \(thesis.tex\) and no benchmark"):
            enter(BenchStore(tmp_path, "attention"), OPTIONS, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


@pytest.mark.bad_input
def test_another_kind_and_a_missing_one_are_named(store, tmp_path):
    with pytest.raises(FileError, match="benchmark of 'attention', not of 'parallel'"):
        BenchStore(store.directory, "parallel").options()
    with pytest.raises(FileError, match="holds no benchmark"):
        BenchStore(tmp_path, "attention").options()


@pytest.mark.bad_input
def test_one_process_at_a_time(store):
    with store.opened(OPTIONS, overwrite=False), pytest.raises(FileError, match="already working"):
        enter(store, OPTIONS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "gatework.bench.cell/1", "id"', "not valid JSON"),
        (json.dumps({"format": "else"}), "must have format"),
        (json.dumps({"format": "gatework.bench.cell/1", "id": "a"}), "lacks cell, reason, status"),
        (json.dumps({"format": "gatework.bench.cell/1", **RECORD, "id": "b"}), "another cell, 'b'"),
    ],
)
def test_a_broken_cell_is_named_and_kept(store, text, message):
    (store.cells / "a.json").write_text(text)
    with pytest.raises(FileError, match=message):
        store.read_all()
    assert (store.cells / "a.json").read_text() == text


def test_slugs_are_file_names():
    assert slug("../SlidingWindow(N // 2, 0) | x") == "SlidingWindow-N-2-0-x"
