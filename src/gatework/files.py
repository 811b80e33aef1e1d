"""Files that outlive a kill: atomic writing, distrustful reading, and one process per directory at a time."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

LOCK_NAME = ".lock"
# Records are a few kilobytes; whatever is this large is not one, and must not fill the memory.
MAX_JSON_BYTES = 64 * 2**20
_TEMPORARY = ".tmp"
_SECONDS_OF_A_DAY = 86_400
#: How long a new file may wait for its name: on Windows nobody may have the old one open, not even to read.
_SECONDS_FOR_A_NAME = 5.0 if os.name == "nt" else 0.0
#: What systems and file systems without locks answer.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
#: Directories that this process has locked, and the locked files: some systems (NFS) do not keep a process
#: from itself.
_HELD: dict[Path, IO[bytes]] = {}


class FileError(ValueError):
    """A file cannot be read or written; the message is one line that says what to do."""


class DirectoryInUseError(FileError):
    """Another process works in the directory, or this one in another place."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file so that, whenever the process is killed, ``path`` holds the old bytes or all of the new.

    Yields:
        A temporary file beside ``path``, open for writing. At the end of the block it is brought to the disk
        and takes the name; if the block raises, it is deleted and ``path`` stays as it was.

    Raises:
        FileError: If it cannot be written (disk full, no permission).
    """
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_name(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileError(
                f"cannot write {path}: {error.strerror or error}; what was stored before is intact. "
                "Make room or set the permissions, then run the same command again to resume"
            ) from error
        raise


def check_file(name: str, path: Path) -> None:
    """Refuse a path that :func:`replacing` could not write, before anything is computed for it.

    Args:
        name: What the caller knows the path as.
        path: The file that is to be written; one that is there stays as it is.

    Raises:
        FileError: If it is a directory, its directory does not exist, or nothing can be written there.
    """
    if _is(path, "is_dir"):
        raise FileError(f"{name} must be a file, got the directory {str(path)!r}")
    if _is(path, "exists") and not _is(path, "is_file"):
        raise FileError(f"{name} must be an ordinary file, which {str(path)!r} is not")
    if not _is(path.parent, "is_dir"):
        raise FileError(f"{name} {str(path)!r:.300} must be in a directory that exists")
    _try_to_write(name, path)


def check_directory(name: str, path: Path) -> None:
    """Refuse a path that cannot be a directory to write to, before anything is computed for it.

    Args:
        name: What the caller knows the path as.
        path: The directory; if it does not exist, it is not made.

    Raises:
        FileError: If it is a file or below one, it cannot be made, or nothing can be written there.
    """
    if _is(path, "is_dir"):
        _try_to_write(name, path / "_")
        return
    if _is(path, "exists") or _is(path, "is_symlink"):
        raise FileError(f"{name} must be a directory, got the file {str(path)!r}")
    above = next(place for place in path.absolute().parents if _is(place, "exists"))
    if not _is(above, "is_dir"):
        raise FileError(f"{name} {str(path)!r} must be a directory, and {str(above)!r} is a file")
    parts = path.absolute().relative_to(above).parts
    for part in parts:
        _look_for(name, above / part)
    _try_to_write(name, above / parts[0])


def _is(path: Path, what: str) -> bool:
    """Ask what a path is; one that cannot be looked at is nothing."""
    try:
        return bool(getattr(path, what)())
    except (OSError, ValueError):
        return False


def _look_for(name: str, path: Path) -> None:
    """Refuse a name that nothing can have: one that is too long, say."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unusable(name, path, error) from error


def _try_to_write(name: str, path: Path) -> None:
    _look_for(name, path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb"):
            pass
        temporary.unlink()
    except (OSError, ValueError) as error:
        raise _unusable(name, path, error) from error


def _unusable(name: str, path: Path, error: Exception) -> FileError:
    reason = getattr(error, "strerror", None) or error
    return FileError(f"{name} {str(path)!r:.300} cannot be written: {reason}")


def temporary_beside(path: Path) -> Path:
    """Return where this process writes before what it wrote takes the name ``path``."""
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}{_TEMPORARY}")


def take_name(temporary: Path, path: Path) -> None:
    """Give a whole file its name; who had the name before is gone.

    Windows refuses while another process has the old file open: it is asked again for some seconds.

    Raises:
        OSError: If it cannot be renamed.
    """
    until = time.monotonic() + _SECONDS_FOR_A_NAME
    while True:
        try:
            os.replace(temporary, path)
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            return


@functools.cache
def _machine() -> str:
    """Name this machine, as a part of a file name."""
    return re.sub(r"[^\w.-]", "-", platform.node())


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 in the way of :func:`replacing`.

    Raises:
        FileError: If it cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` as indented JSON in the way of :func:`replacing`.

    Raises:
        FileError: If it cannot be written.
        ValueError: If it holds a number that JSON has not (NaN, infinity).
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in ``directory``: renaming alone may be undone by a power cut.

    Windows opens no directories, and some file systems cannot wait for one: there it stays at that.

    Raises:
        OSError: If the disk fails.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files in ``directory`` whose writers are gone.

    Those are processes of this machine that have ended; of another machine, which may share the directory,
    one that has not written for a day.
    """
    for path in directory.glob(f".*{_TEMPORARY}"):
        with contextlib.suppress(OSError):
            if _is_left_over(path):
                path.unlink()


def _is_left_over(path: Path) -> bool:
    name, _, process = path.name.removesuffix(_TEMPORARY).rpartition(".")
    if name.endswith(f".{_machine()}") and process.isdecimal():
        return int(process) == os.getpid() or not _is_running(int(process))
    return time.time() - path.stat().st_mtime > _SECONDS_OF_A_DAY


if sys.platform == "win32":  # where os.kill(process, 0) would end the process

    def _is_running(process: int) -> bool:
        import ctypes

        synchronize, access_denied, timeout = 0x0010_0000, 5, 0x102  # names of the Windows API
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(kernel.OpenProcess(synchronize, False, process))
        if not handle:
            return ctypes.get_last_error() == access_denied  # somebody else's
        try:
            return bool(kernel.WaitForSingleObject(handle, 0) == timeout)
        finally:
            kernel.CloseHandle(handle)

else:

    def _is_running(process: int) -> bool:
        try:
            os.kill(process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:  # somebody else's
            return True
        return True


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Args:
        path: An existing file.
        remedy: What the user can do if it is broken; the end of the error message.

    Raises:
        FileError: If the file cannot be read, is no JSON (truncated, NaN, ...) or is no object.
    """
    if not path.is_file():
        raise FileError(f"{path} is not a regular file; {remedy}")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FileError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; {remedy}")
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise FileError(f"{path} holds no JSON object but a {type(value).__name__}; {remedy}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep every other process from working in ``directory``, until the block or the process ends.

    The lock is the operating system's, taken by the library ``filelock``, and belongs to this process alone:
    a killed one leaves none behind, not even if loader processes that it forked live on for a moment. The
    file itself stays, because deleting it could hand one lock to two processes. Where neither the system nor
    the file system has locks, a second file stands for one; it names its process, and is taken over when that
    is dead.

    Raises:
        DirectoryInUseError: If another process holds the lock; the message says its process id.
        FileError: If nothing can be written there.
    """
    place = directory.resolve()
    if place in _HELD:
        raise _in_use(directory, f"this one ({os.getpid()})")
    try:
        file = open(directory / LOCK_NAME, "a+b", buffering=0)  # noqa: SIM115 (a forked child closes it)
    except OSError as error:
        raise FileError(f"cannot lock {directory}: {error.strerror or error}") from error
    with file:
        _HELD[place] = file  # before it is locked: a child may be forked at any time
        try:
            unlock = _lock(file, directory)
            try:
                yield
            finally:
                if not file.closed:  # as it is in a forked child
                    unlock()
        finally:
            _HELD.pop(place, None)


def _lock(file: IO[bytes], directory: Path) -> Callable[[], object]:
    """Lock the file, and write this process's number from its second byte on: Windows locks the first.

    Returns:
        What unlocks it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no locks but files; then those do
        from filelock import SoftFileLock, Timeout, lock_descriptor, unlock_descriptor

    try:
        try:
            locked = lock_descriptor(file.fileno(), blocking=False)
            unlock: Callable[[], object] = functools.partial(unlock_descriptor, file.fileno())
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # The number of its process shows whether one that is left is that of a dead one.
            by_name = SoftFileLock(directory / f"{LOCK_NAME}.file", timeout=0)
            unlock = by_name.release
            try:
                by_name.acquire()
                locked = True
            except Timeout:
                locked = False
        if locked:
            file.truncate(0)
            file.write(f" {os.getpid()}".encode())
            return unlock
        file.seek(1)
        holder = file.read(32).decode(errors="replace").strip()
    except OSError as error:
        raise FileError(f"cannot lock {directory}: {error.strerror or error}") from error
    raise _in_use(directory, holder or "of unknown number")


def _in_use(directory: Path, holder: str) -> DirectoryInUseError:
    return DirectoryInUseError(
        f"process {holder} is already working in {directory}; "
        "wait for it, stop it, or choose another directory"
    )


def _close_in_child() -> None:
    """Close the locked files that a forked child inherits: it would keep the locks of a killed parent."""
    for file in _HELD.values():
        file.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
