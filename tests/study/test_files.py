from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from gatework.study.files import StudyError, exclusive, read_json, write_atomically


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "page.html"
    for text in ("one", "zwei · ünïcode", ""):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    write_atomically(tmp_path / "a", "x" * 100)
    assert (tmp_path / "a").read_text() == "x" * 100


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "study.json"
    write_atomically(path, "old")
    real = os.write

    def full(*arguments):
        if call == "write":
            real(arguments[0], b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        StudyError, match=r"cannot write .*study\.json: No space left on device.*resume"
    ) as caught:
        write_atomically(path, "new")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\x00" * 64, "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "holds no JSON object but a list"),
        (b"null", "holds no JSON object but a NoneType"),
    ],
)
def test_broken_json_is_one_line_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=message) as caught:
        read_json(path, remedy="pray")
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith("pray")
    assert "\n" not in text
    assert path.read_bytes() == content


def test_only_regular_files_of_reasonable_size_are_read(tmp_path):
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    (tmp_path / "vast.json").touch()
    os.truncate(tmp_path / "vast.json", 2**40)
    for name in ("folder.json", "pipe.json"):
        with pytest.raises(StudyError, match="not a regular file"):
            read_json(tmp_path / name, remedy="")
    with pytest.raises(StudyError, match="larger than 64 MiB"):
        read_json(tmp_path / "vast.json", remedy="")


def test_lock_excludes_other_processes_and_says_which_one_holds_it(tmp_path):
    program = (
        "import sys; from pathlib import Path; from gatework.study.files import exclusive\n"
        f"with exclusive(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(StudyError, match=rf"already running.*process {holder.pid}\)"),
            exclusive(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with exclusive(tmp_path):  # a killed process leaves no lock
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(StudyError, match=str(os.getpid())), exclusive(tmp_path):
            pass


def test_locking_nowhere(tmp_path):
    with pytest.raises(StudyError, match=r"cannot lock .*No such file"), exclusive(tmp_path / "absent"):
        pass
