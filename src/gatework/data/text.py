"""Real text for byte-level language modelling: a corpus in three splits, random crops, evaluation windows.

A token is a byte, the vocabulary has 256. Text that every machine has is the source of Python's own
standard library; any folder or file of text will do instead. Byte 0, which no accepted document
contains, ends each document.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from gatework.data.checks import check_choice, check_int, check_seed

#: Number of tokens of byte-level text.
VOCAB_SIZE = 256
#: The byte after each document.
SEPARATOR = b"\0"

Split = Literal["train", "validation", "test"]

# Folders of the standard library that hold tests, or packages installed beside it.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
_TRAIN_SHARE, _VALIDATION_SHARE = 0.90, 0.05


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """Text in three splits, with what identifies it.

    Attributes:
        name: Where it comes from, in words.
        train: Bytes to train on, about 90 %.
        validation: Bytes to choose by, about 5 %.
        test: Bytes to report on, about 5 %.
        sha256: Digest over path and content of all documents in the order of their paths.
        num_documents: Number of documents used.
        num_bytes: Their bytes, separators not counted.
        num_skipped: Files left out because they are binary or not UTF-8.
        split_by: ``"document"``: a document lies in one split, which its path decides, so that adding others
            does not move it. ``"position"``: there are too few documents for that, and the whole text is cut
            at 90 and 95 %.
    """

    name: str
    train: UInt8[np.ndarray, " train"]
    validation: UInt8[np.ndarray, " validation"]
    test: UInt8[np.ndarray, " test"]
    sha256: str
    num_documents: int
    num_bytes: int
    num_skipped: int
    split_by: Literal["document", "position"]

    def split(self, name: Split) -> UInt8[np.ndarray, " bytes"]:
        """Return the split called ``name``.

        Raises:
            ValueError: If there is none of that name.
        """
        check_choice("split", name, ("train", "validation", "test"))
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def load_standard_library(*, max_bytes: int | None = None) -> TextCorpus:
    """Load the source of the running Python's standard library, without tests and installed packages.

    Args:
        max_bytes: Use no more than this; see :func:`load_text`.

    Raises:
        ValueError: If this Python comes without its source, or ``max_bytes`` is below 1.
    """
    root = Path(sysconfig.get_path("stdlib"))
    name = f"Python {platform.python_version()} standard library"
    return _load(name, root, _find(root, (".py",), _NOT_LIBRARY), "*.py files", max_bytes)


def load_text(
    path: str | os.PathLike[str], *, suffixes: Sequence[str] | None = None, max_bytes: int | None = None
) -> TextCorpus:
    """Load a text file, or all text files below a folder; names that start with a dot are passed over.

    Args:
        path: The file or folder.
        suffixes: Take only files of a folder whose name ends so, such as ``[".txt", ".md"]``.
        max_bytes: Use no more than this: whole documents, chosen by a hash of their path, and the beginning
            of the one that does not fit.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such path or no text in it, or ``max_bytes`` is below 1.
        OSError: If a file or folder cannot be read.
    """
    root = Path(path)
    if suffixes is not None and (
        isinstance(suffixes, str) or not all(isinstance(suffix, str) for suffix in suffixes)
    ):
        raise TypeError(f"suffixes must be a list such as ['.txt'], got {suffixes!r}")
    if not root.exists():
        raise ValueError(f"path must be a file or folder of text, but {str(root)!r} does not exist")
    if not root.is_dir():
        return _load(str(root), root, {root.name: root}, "UTF-8 text", max_bytes)
    wanted = "UTF-8 text files" if suffixes is None else f"UTF-8 text files ending in {', '.join(suffixes)}"
    ends = ("",) if suffixes is None else tuple(suffixes)
    return _load(str(root), root, _find(root, ends, frozenset()), wanted, max_bytes)


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


def _load(name: str, root: Path, paths: dict[str, Path], wanted: str, max_bytes: int | None) -> TextCorpus:
    """Read the documents and put them together."""
    if max_bytes is not None:
        check_int("max_bytes", max_bytes, at_least=1)
    documents: dict[str, bytes] = {}
    skipped, room = 0, max_bytes
    for relative in sorted(paths, key=lambda relative: (_path_hash(relative)[8:], relative)):
        if room == 0:
            break
        content = _read_text(paths[relative], room)
        if content is None:
            skipped += 1
        elif content:
            documents[relative] = content
            room = None if room is None else room - len(content)
    if not documents:
        raise ValueError(f"no text in {str(root)!r}: looked for {wanted}, skipped {skipped} as binary")
    (train, validation, test), split_by = _split(documents)
    return TextCorpus(
        name=name,
        train=np.frombuffer(train, dtype=np.uint8),
        validation=np.frombuffer(validation, dtype=np.uint8),
        test=np.frombuffer(test, dtype=np.uint8),
        sha256=_digest(documents),
        num_documents=len(documents),
        num_bytes=sum(map(len, documents.values())),
        num_skipped=skipped,
        split_by=split_by,
    )


def _read_text(path: Path, limit: int | None) -> bytes | None:
    """Read the first ``limit`` bytes of a file; None if they are not text."""
    with path.open("rb") as file:
        content = file.read(-1 if limit is None else limit)
        complete = not file.read(1)
    if SEPARATOR in content:
        return None
    try:
        # A limit may cut the last character in two; a file may not end so.
        codecs.getincrementaldecoder("utf-8")().decode(content, final=complete)
    except UnicodeDecodeError:
        return None
    return content


def _split(
    documents: dict[str, bytes],
) -> tuple[tuple[bytes, bytes, bytes], Literal["document", "position"]]:
    """Share the documents out to training, validation and test."""
    parts: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
    for relative in sorted(documents):
        share = int.from_bytes(_path_hash(relative)[:8], "big") / 2**64
        index = 0 if share < _TRAIN_SHARE else 1 if share < _TRAIN_SHARE + _VALIDATION_SHARE else 2
        parts[index].append(documents[relative] + SEPARATOR)
    if all(parts):
        train, validation, test = (b"".join(part) for part in parts)
        return (train, validation, test), "document"
    whole = b"".join(documents[relative] + SEPARATOR for relative in sorted(documents))
    first = round(len(whole) * _TRAIN_SHARE)
    second = round(len(whole) * (_TRAIN_SHARE + _VALIDATION_SHARE))
    return (whole[:first], whole[first:second], whole[second:]), "position"


def _path_hash(relative: str) -> bytes:
    """Hash a path: its first 8 bytes choose the split, the others the order in which a limit is filled."""
    return hashlib.sha256(os.fsencode(relative)).digest()


def _digest(documents: dict[str, bytes]) -> str:
    """Hash paths and contents, each after its length, so that no two corpora give the same bytes to hash."""
    digest = hashlib.sha256()
    for relative in sorted(documents):
        for part in (os.fsencode(relative), documents[relative]):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


class TextCrops(Dataset[tuple[Tensor, Tensor]]):
    """Random stretches of the training split: item ``i`` follows from ``(seed, i)`` alone.

    Each item is ``length`` bytes and, as labels, the byte after each.

    Args:
        corpus: Where to cut from.
        length: Bytes per example.
        num_examples: Number of items.
        seed: Seed of the places to cut at.

    Raises:
        ValueError: If a number is out of range, or the split is shorter than ``length + 1``.
    """

    def __init__(self, corpus: TextCorpus, length: int, *, num_examples: int, seed: int) -> None:
        check_int("num_examples", num_examples, at_least=0)
        check_seed(seed)
        self.data = _checked(corpus, "train", length)
        self.length = length
        self.num_examples = num_examples
        self.seed = seed

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"index must be in 0 .. {self.num_examples - 1}, got {index}")
        # Hashing (seed, index) needs no generator to be carried or restored, in any order, in any worker.
        hashed = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint64)[0]
        return _example(self.data, int(hashed) % (len(self.data) - self.length), self.length)


class TextWindows(Dataset[tuple[Tensor, Tensor]]):
    """The stretches of a split one after another, each byte the label of at most one position.

    Fewer than ``length`` bytes at the end are left out.

    Args:
        corpus: Where to cut from.
        length: Bytes per example.
        split: Which split.

    Raises:
        ValueError: If ``length`` is below 1, there is no such split, or it is shorter than ``length + 1``.
    """

    def __init__(self, corpus: TextCorpus, length: int, *, split: Split = "validation") -> None:
        self.data = _checked(corpus, split, length)
        self.length = length

    def __len__(self) -> int:
        return (len(self.data) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        return _example(self.data, index * self.length, self.length)


def _checked(corpus: TextCorpus, split: Split, length: int) -> UInt8[np.ndarray, " bytes"]:
    check_int("length", length, at_least=1)
    data = corpus.split(split)
    if len(data) <= length:
        raise ValueError(
            f"length must be below the {len(data)} bytes of the {split} split of {corpus.name}, got {length}"
        )
    return data


def _example(
    data: UInt8[np.ndarray, " bytes"], start: int, length: int
) -> tuple[Int64[Tensor, " length"], Int64[Tensor, " length"]]:
    """Cut out inputs, and labels one byte further on."""
    tokens = torch.from_numpy(data[start : start + length + 1].astype(np.int64))
    return tokens[:-1], tokens[1:]
