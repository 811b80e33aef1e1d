from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from gatework.files import FileError, exclusive, read_json, write_atomically


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "page.html"
    for text in ("one", "zwei · ünïcode", ""):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "study.json"
    write_atomically(path, "old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        FileError, match=r"cannot write .*study\.json: No space left on device.*resume"
    ) as caught:
        write_atomically(path, "new")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path):
    path = tmp_path / "study.json"
    write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(FileError, match=r"cannot write .*study\.json: File too large"):
            write_atomically(path, "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
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
    with pytest.raises(FileError, match=message) as caught:
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
        with pytest.raises(FileError, match="not a regular file"):
            read_json(tmp_path / name, remedy="")
    with pytest.raises(FileError, match="larger than 64 MiB"):
        read_json(tmp_path / "vast.json", remedy="")


def test_lock_excludes_other_processes_and_says_which_one_holds_it(tmp_path):
    program = (
        "import sys; from pathlib import Path; from gatework.files import exclusive\n"
        f"with exclusive(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(FileError, match=rf"process {holder.pid} is already working in"),
            exclusive(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with exclusive(tmp_path):  # a killed process leaves no lock
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
        with pytest.raises(FileError, match=str(os.getpid())), exclusive(tmp_path):
            pass


def test_locking_nowhere(tmp_path):
    with pytest.raises(FileError, match=r"cannot lock .*No such file"), exclusive(tmp_path / "absent"):
        pass
