"""Places to write are tried before anything is computed for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gatework.cli import main
from gatework.files import FileError, check_directory, check_file

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a file and a directory in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    return tmp_path


def names(place):
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*"))


@pytest.mark.parametrize("path", ["new", "new/below/it", "folder", "folder/new", "."])
def test_a_directory_that_can_be_made_is_not_made_yet(place, path):
    check_directory("output", Path(path))
    assert names(place) == ["file", "folder"]


@pytest.mark.parametrize("path", ["new", "file", "folder/new"])
def test_a_file_that_can_be_written_is_not_touched(place, path):
    check_file("output", Path(path))
    assert names(place) == ["file", "folder"]
    assert (place / "file").read_text() == "kept"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("check", "path", "message"),
    [
        (check_directory, "file", "output must be a directory, got the file"),
        (check_directory, "file/below/it", "must be a directory, and .* is a file"),
        (check_directory, "x" * 300, "cannot be written: File name too long"),
        (check_directory, "new/" + "x" * 300, "cannot be written: File name too long"),
        (check_directory, "a\0b", "null"),
        (check_file, "folder", "output must be a file, got the directory"),
        (check_file, "new/file", "must be in a directory that exists"),
        (check_file, "file/below", "must be in a directory that exists"),
        (check_file, "x" * 300, "cannot be written: File name too long"),
        (check_file, "a\0b", "null"),
        (check_file, os.devnull, "must be an ordinary file"),
    ],
)
def test_a_path_that_cannot_be_written_is_named(place, check, path, message):
    with pytest.raises(FileError, match=message):
        check("output", Path(path))
    assert names(place) == ["file", "folder"]


@pytest.mark.bad_input
@pytest.mark.skipif(ROOT, reason="root may write anywhere")
@pytest.mark.parametrize("check", [check_directory, check_file])
def test_a_directory_without_permission_is_named(place, check):
    (place / "folder").chmod(0o555)
    with pytest.raises(FileError, match="Permission denied"):
        check("output", place / "folder" / "new")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--task=recall", "--output=file"], "--output must be a directory"),
        (["fit", "--task=recall", "--output=file/run"], "must be a directory"),
        (["compare", "recall", "--output=file"], "--output must be a directory"),
        (["bench", "gna", "--output=file"], "--output must be a directory"),
        (["bench", "attention", "--output=file/x"], "must be a directory"),
        (["evaluate", "ar-slices", "none", "--json=folder"], "--json must be a file"),
        (["validate", "--run=none", "--json=new/file"], "must be in a directory that exists"),
        (["report", "none", "--output=folder"], "--output must be a file"),
        (
            ["report", "none", "--against=none", "--output=new/page.html"],
            "must be in a directory that exists",
        ),
        (["convert", "none", "none", "new/x.safetensors"], "must be in a directory that exists"),
    ],
)
def test_a_wrong_place_is_refused_before_the_work(place, words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert names(place) == ["file", "folder"]
