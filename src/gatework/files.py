"""Files that outlive a kill: atomic writing, distrustful reading, and one process per directory at a time."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LOCK_NAME = ".lock"
# Records are a few kilobytes; whatever is this large is not one, and must not fill the memory.
MAX_JSON_BYTES = 64 * 2**20
_TEMPORARY = ".tmp"
_SECONDS_OF_A_DAY = 86_400
#: Directories that this process has locked: the system's locks do not keep a process from itself.
_OWN_LOCKS: set[Path] = set()


class FileError(ValueError):
    """A file cannot be read or written; the message is one line that says what to do."""


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
        os.replace(temporary, path)
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


def temporary_beside(path: Path) -> Path:
    """Return where this process writes before what it wrote takes the name ``path``."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{_TEMPORARY}")


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
    """Wait until the disk has the names in ``directory``: renaming alone may be undone by a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
    if name.endswith(f".{platform.node()}") and process.isdecimal():
        return int(process) == os.getpid() or not _is_running(int(process))
    return time.time() - path.stat().st_mtime > _SECONDS_OF_A_DAY


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
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

    The lock belongs to this process alone: a killed one leaves none behind, not even if loader processes
    that it forked live on for a moment. The file itself stays, because deleting it could hand one lock to
    two processes.

    Raises:
        FileError: If another process holds the lock; the message says its process id.
    """
    import fcntl  # POSIX only: reading results must work without it

    place = directory.resolve()
    if place in _OWN_LOCKS:
        raise _locked(directory, f"this one ({os.getpid()})")
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise FileError(f"cannot lock {directory}: {error.strerror or error}") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise _locked(directory, holder) from error
        except OSError as error:
            raise FileError(f"cannot lock {directory}: {error.strerror or error}") from error
        _OWN_LOCKS.add(place)
        try:
            yield
        finally:
            _OWN_LOCKS.remove(place)
    finally:
        os.close(descriptor)


def _locked(directory: Path, holder: str) -> FileError:
    return FileError(
        f"process {holder} is already working in {directory}; "
        "wait for it, stop it, or choose another directory"
    )
