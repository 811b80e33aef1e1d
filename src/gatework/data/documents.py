"""Where text comes from: files, Python's standard library, or a data set of the ``datasets`` library.

A source gives its documents one by one, in the same order every time, and never holds all of them. What is
no text is passed over and counted by reason:

- ``"binary"``: there is a NUL byte in it, which ends documents of bytes;
- ``"not UTF-8"``: another encoding, such as Latin-1 or UTF-16 with its byte order mark, or damage;
- ``"empty"``: there is nothing in it.

The byte order mark that some programs put before UTF-8 is dropped.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from gatework.checks import check_int

BINARY, NOT_UTF8, EMPTY = "binary", "not UTF-8", "empty"
_CHUNK_BYTES = 2**20
_DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".arrow")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Folders of the standard library that hold tests, or packages installed beside it.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})


class Document(NamedTuple):
    """A document that is text.

    Attributes:
        key: What it is called, as bytes.
        share: A hash in 0 .. 1 that chooses its split, of the document alone: others do not move it.
        num_bytes: Its size, at least 1.
        chunks: Reads its bytes, in pieces of any size.
    """

    key: bytes
    share: float
    num_bytes: int
    chunks: Callable[[], Iterator[bytes]]


@runtime_checkable
class DocumentSource(Protocol):
    """Documents in a fixed order, as often as wanted."""

    @property
    def name(self) -> str:
        """Where they come from, in words."""

    def size(self) -> int | None:
        """Return their bytes, if that can be known before they are all read."""

    def identity(self) -> Mapping[str, Any]:
        """Return what changes with the documents, as JSON, without reading them."""

    def documents(self, skipped: Counter[str], *, mixed: bool = False) -> Iterator[Document]:
        """Read the documents.

        Args:
            skipped: Counts what is no text, by reason.
            mixed: Whether the beginning should stand for the whole, if the source can do that.
        """

    def nothing(self, skipped: Mapping[str, int]) -> ValueError:
        """Return the error that says that there is no text."""


@dataclass(frozen=True)
class FileSource:
    """A text file, or all text files below a folder in the order of their paths.

    The hash of a document is that of its path.

    Args:
        name: Where they come from, in words.
        root: The file or folder.
        paths: The files by relative path, with forward slashes.
        wanted: What was looked for, in words.
        max_bytes: Use no more than this: whole documents, chosen by a hash of their path, and the beginning
            of the one that does not fit.
    """

    name: str
    root: Path
    paths: Mapping[str, Path] = field(repr=False)
    wanted: str
    max_bytes: int | None = None

    def size(self) -> int:
        """Return the bytes of all documents."""
        return sum(content.num_bytes for content in self._texts[0].values())

    def identity(self) -> Mapping[str, Any]:
        """Hash the names, sizes and times of change of the files."""
        digest = hashlib.sha256()
        for relative, path in sorted(self.paths.items()):
            status = path.stat()
            for part in (
                os.fsencode(relative),
                str(status.st_size).encode(),
                str(status.st_mtime_ns).encode(),
            ):
                digest.update(len(part).to_bytes(8, "big") + part)
        return {"root": str(self.root.resolve()), "files": digest.hexdigest(), "max_bytes": self.max_bytes}

    def documents(self, skipped: Counter[str], *, mixed: bool = False) -> Iterator[Document]:
        """Read the documents, in the order of their paths or of a hash of these.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If a file changes in the meantime.
        """
        texts, passed_over = self._texts
        skipped.update(passed_over)
        for relative in sorted(texts, key=_shuffled if mixed else None):
            share = int.from_bytes(_path_hash(relative)[:8], "big") / 2**64
            text = texts[relative]
            yield Document(os.fsencode(relative), share, text.num_bytes, text.chunks)

    def nothing(self, skipped: Mapping[str, int]) -> ValueError:
        """Return the error that says that there is no text."""
        return ValueError(
            f"no text in {str(self.root)!r}: looked for {self.wanted}, {skipped_words(skipped)}"
        )

    @cached_property
    def _texts(self) -> tuple[dict[str, _TextFile], Counter[str]]:
        """Read all files once, keeping only how much of which is text."""
        texts: dict[str, _TextFile] = {}
        skipped: Counter[str] = Counter()
        room = self.max_bytes
        for relative in sorted(self.paths, key=_shuffled):
            if room == 0:
                break
            text = _examine(self.paths[relative], room)
            if isinstance(text, str):
                skipped[text] += 1
            else:
                texts[relative] = text
                room = None if room is None else room - text.num_bytes
        return texts, skipped


class _TextFile(NamedTuple):
    """A stretch of a file that is text."""

    path: Path
    start: int
    num_bytes: int

    def chunks(self) -> Iterator[bytes]:
        missing = self.num_bytes
        with self.path.open("rb") as file:
            file.seek(self.start)
            while missing:
                chunk = file.read(min(missing, _CHUNK_BYTES))
                if not chunk:
                    raise ValueError(f"{self.path} was changed while it was read: start again")
                missing -= len(chunk)
                yield chunk


def standard_library(*, max_bytes: int | None = None) -> FileSource:
    """Return the source of the running Python's standard library, without tests and installed packages.

    Args:
        max_bytes: Use no more than this; see :class:`FileSource`.

    Raises:
        ValueError: If ``max_bytes`` is below 1.
    """
    if max_bytes is not None:
        check_int("max_bytes", max_bytes, at_least=1)
    root = Path(sysconfig.get_path("stdlib"))
    name = f"Python {platform.python_version()} standard library"
    return FileSource(name, root, _find(root, (".py",), _NOT_LIBRARY), "*.py files", max_bytes)


def files(
    path: str | os.PathLike[str], *, suffixes: Sequence[str] | None = None, max_bytes: int | None = None
) -> FileSource:
    """Return a text file, or all text files below a folder; names that start with a dot are passed over.

    Args:
        path: The file or folder.
        suffixes: Take only files of a folder whose name ends so, such as ``[".txt", ".md"]``.
        max_bytes: Use no more than this; see :class:`FileSource`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such path, or ``max_bytes`` is below 1.
        OSError: If a folder cannot be read.
    """
    if max_bytes is not None:
        check_int("max_bytes", max_bytes, at_least=1)
    root = Path(path)
    if suffixes is not None and (
        isinstance(suffixes, str) or not all(isinstance(suffix, str) for suffix in suffixes)
    ):
        raise TypeError(f"suffixes must be a list such as ['.txt'], got {suffixes!r}")
    if not root.exists():
        raise ValueError(f"path must be a file or folder of text, but {str(root)!r} does not exist")
    if not root.is_dir():
        return FileSource(str(root), root, {root.name: root}, "UTF-8 text", max_bytes)
    wanted = "UTF-8 text files" if suffixes is None else f"UTF-8 text files ending in {', '.join(suffixes)}"
    ends = ("",) if suffixes is None else tuple(suffixes)
    return FileSource(str(root), root, _find(root, ends, frozenset()), wanted, max_bytes)


def is_local(name: str | os.PathLike[str]) -> bool:
    """Say whether ``name`` can only be a path: on the hub there is ``NAME`` and ``OWNER/NAME`` at most."""
    text = os.fspath(name)
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).suffix in _DATA_SUFFIXES:
        return True
    return os.sep in text.replace("/", "") or Path(text).drive != ""  # Windows: folder\\file, C:file


def skipped_words(skipped: Mapping[str, int]) -> str:
    """Say how many documents were passed over, and why: ``"skipped 2 binary, 1 empty"``."""
    counts = [f"{count} {reason}" for reason, count in sorted(skipped.items())]
    return f"skipped {', '.join(counts) or 'none'}"


def _find(root: Path, ends: tuple[str, ...], excluded: frozenset[str]) -> dict[str, Path]:
    """Find the files below ``root``, by relative path with forward slashes."""
    found = {}
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        subfolders[:] = [name for name in subfolders if name not in excluded and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            # Only regular files: reading a pipe would wait for ever.
            if name.endswith(ends) and not name.startswith(".") and path.is_file():
                found[path.relative_to(root).as_posix()] = path
    return found


def _raise(error: OSError) -> None:
    # os.walk would leave out an unreadable folder without a word, and the corpus would be another.
    raise error


def _examine(path: Path, limit: int | None) -> _TextFile | str:
    """Read the first ``limit`` bytes of a file's text; return where they are, or why they are no text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_bytes = 0
    with path.open("rb") as file:
        mark = file.read(len(codecs.BOM_UTF8))
        if mark.startswith(_UTF16_MARKS):
            return NOT_UTF8
        start = len(mark) if mark == codecs.BOM_UTF8 else 0
        file.seek(start)
        while limit is None or num_bytes < limit:
            chunk = file.read(_CHUNK_BYTES if limit is None else min(_CHUNK_BYTES, limit - num_bytes))
            if not chunk:
                break
            if b"\0" in chunk:
                return BINARY
            num_bytes += len(chunk)
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return NOT_UTF8
        # A limit may cut the last character in two; a file may not end so.
        if decoder.getstate()[0] and not file.read(1):
            return NOT_UTF8
    return _TextFile(path, start, num_bytes) if num_bytes else EMPTY


def _path_hash(relative: str) -> bytes:
    """Hash a path: its first 8 bytes choose the split, the others the order in which a limit is filled."""
    return hashlib.sha256(os.fsencode(relative)).digest()


def _shuffled(relative: str) -> tuple[bytes, str]:
    return _path_hash(relative)[8:], relative
