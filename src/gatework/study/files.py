"""Files that outlive a kill: atomic writing, distrustful reading, and one study per directory at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK_NAME = ".lock"
# A result is a few kilobytes; whatever is this large is not one, and must not fill the memory.
MAX_JSON_BYTES = 64 * 2**20


class StudyError(ValueError):
    """A study cannot start or go on; the message is one line that says what to do."""


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that, whenever the process is killed, ``path`` holds the old text or all of the new.

    Args:
        path: Where to; its directory exists.
        text: Written as UTF-8, to a temporary file beside ``path`` that then takes its name.

    Raises:
        StudyError: If it cannot be written (disk full, no permission); ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_synced(temporary, text.encode())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StudyError(
            f"cannot write {path}: {error.strerror or error}; what was stored before is intact. "
            "Make room or set the permissions, then run the same command again to resume"
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    """Wait until the disk has the names in ``directory``: renaming alone may be undone by a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """Read the JSON object in ``path``.

    Args:
        path: An existing file.
        remedy: What the user can do if it is broken; the end of the error message.

    Raises:
        StudyError: If the file cannot be read, is no JSON (truncated, NaN, ...) or is no object.
    """
    if not path.is_file():
        raise StudyError(f"{path} is not a regular file; {remedy}")
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StudyError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB; {remedy}")
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    except StudyError:
        raise
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is not valid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise StudyError(f"{path} holds no JSON object but a {type(value).__name__}; {remedy}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep every other process from running a study in ``directory``, until the block or the process ends.

    The lock belongs to the open file, so a killed process leaves none behind; the file itself stays, because
    deleting it could hand one lock to two processes.

    Raises:
        StudyError: If another process holds the lock; the message says its process id.
    """
    import fcntl  # POSIX only: reading results must work without it

    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StudyError(f"cannot lock {directory}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise StudyError(
                f"a study is already running in {directory} (process {holder}); "
                "wait for it, stop it, or choose another directory"
            ) from error
        except OSError as error:
            raise StudyError(f"cannot lock {directory}: {error.strerror or error}") from error
        yield
    finally:
        os.close(descriptor)
