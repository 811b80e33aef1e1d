from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from gatework import files
from gatework.files import (
    DirectoryInUseError,
    FileError,
    exclusive,
    read_json,
    remove_leftovers,
    sync_directory,
    take_name,
    temporary_beside,
    write_atomically,
)


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
    resource = pytest.importorskip("resource")  # POSIX only
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
        assert (tmp_path / ".lock").read_text() == f" {os.getpid()}"
        with pytest.raises(FileError, match=str(os.getpid())), exclusive(tmp_path):
            pass


def test_locking_nowhere(tmp_path):
    with pytest.raises(FileError, match=r"cannot lock .*No such file"), exclusive(tmp_path / "absent"):
        pass


FORKING_HOLDER = """
import os, sys, time
from pathlib import Path
from gatework.files import exclusive
with exclusive(Path(sys.argv[1])):
    child = os.fork()
    if not child:  # as a loader process: it works on while its parent has the lock, and for a moment longer
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    command = [sys.executable, "-c", FORKING_HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(DirectoryInUseError, match=f"process {holder.pid} is"), exclusive(tmp_path):
            pass  # the child has closed what it inherited, and its parent holds on
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        with exclusive(tmp_path):
            assert (tmp_path / ".lock").read_text() == f" {os.getpid()}"
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_leaves_the_block_leaves_the_lock_to_its_parent(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from gatework.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n"
        "    child = os.fork()\n"
        "    if child: print(os.waitpid(child, 0)[1], flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "0\n"
        with pytest.raises(DirectoryInUseError, match=f"process {holder.pid} is"), exclusive(tmp_path):
            pass
        holder.stdin.close()
    with exclusive(tmp_path):
        pass


WITHOUT_LOCKS = """
import sys; from pathlib import Path
sys.modules["fcntl"] = None
from gatework.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_without_locks_a_file_that_names_its_process_stands_for_one(tmp_path, monkeypatch):
    def unlockable(descriptor, *, blocking):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.lock_descriptor", unlockable)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_LOCKS, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryInUseError, match=f"process {holder.pid} is"), exclusive(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with exclusive(tmp_path):  # the process is dead
        assert (tmp_path / ".lock").read_text() == f" {os.getpid()}"
        with pytest.raises(DirectoryInUseError, match=str(os.getpid())), exclusive(tmp_path):
            pass
    with exclusive(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_a_name_that_is_in_use_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SECONDS_FOR_A_NAME", 5.0)  # as on Windows
    (tmp_path / "new").write_text("new")
    refusals, replace = [1, 2, 3], os.replace

    def refuse(source, target):
        if refusals:
            raise PermissionError(errno.EACCES, f"in use {refusals.pop()}")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    take_name(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"
    refusals[:] = range(10**6)
    monkeypatch.setattr(files, "_SECONDS_FOR_A_NAME", 0.1)
    begun = time.monotonic()
    with pytest.raises(FileError, match=r"cannot write .*old: in use"):
        write_atomically(tmp_path / "old", "newer")
    assert 0.1 <= time.monotonic() - begun < 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_a_system_that_opens_no_directories(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    sync_directory(tmp_path)


def test_leftovers_of_ended_processes_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = temporary_beside(tmp_path / "a.json").name
    machine = own.removeprefix(".a.json.").removesuffix(f".{os.getpid()}.tmp")
    names = {
        own: False,
        f".b.json.{machine}.{ended.pid}.tmp": False,
        f".c.json.{machine}.{os.getppid()}.tmp": True,
        f".d.json.{machine}.{10**30}.tmp": False,
        f".e.json.elsewhere.{ended.pid}.tmp": True,  # its processes cannot be seen from here
        ".f.json.elsewhere.7.tmp": False,  # but this one has not written for days
        "g.tmp": True,
    }
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / ".f.json.elsewhere.7.tmp", (0, 0))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_names_hold_nothing_that_a_file_system_forbids(tmp_path, monkeypatch):
    files._machine.cache_clear()
    monkeypatch.setattr(platform, "node", lambda: "Ada's Mac: 7/8\\9?")
    try:
        name = temporary_beside(tmp_path / "a.json").name
    finally:
        files._machine.cache_clear()
    assert not set(name) & set("<>:\"/\\|?*'")


def test_threads_of_one_process_exclude_each_other(tmp_path):
    seen = []

    def try_it():
        try:
            with exclusive(tmp_path):
                seen.append("held")
        except DirectoryInUseError as error:
            seen.append(str(error))

    with exclusive(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert f"this one ({os.getpid()})" in seen[0]
