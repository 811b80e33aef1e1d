"""Tokens on disk: written once, in one pass, and mapped into memory afterwards.

A folder of the cache holds the tokens of one corpus under one tokenizer: for each split ``NAME.npy`` and
``NAME.starts.npy``, ``tokenizer.json`` unless tokens are bytes, and ``corpus.json``, which is written last.
Without it the others do not count, so that nothing of a build that was killed is taken for whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from gatework.data.documents import DocumentSource
from gatework.data.token_build import SPLITS, SplitFiles, SplitPlan, plan_splits, write_tokens
from gatework.data.tokenizer import BPETokenizer, TextTokenizer, id_type
from gatework.files import (
    DirectoryInUseError,
    FileError,
    exclusive,
    read_json,
    remove_leftovers,
    replacing,
    write_atomically,
    write_json,
)

RECORD_NAME = "corpus.json"
TOKENIZER_NAME = "tokenizer.json"
#: Raised when the files or the tokens in them change their meaning: older folders are then not found.
FORMAT = 1
_SECONDS_BETWEEN_LOOKS = 0.2
_LOGGER = logging.getLogger(__name__)

#: Makes the tokenizer, when the documents are shared out.
TokenizerChoice = Callable[[DocumentSource, SplitPlan], TextTokenizer]


def entry_folder(cache: Path, source: DocumentSource, tokenizer: str) -> Path:
    """Return the folder of ``cache`` for these documents and the tokenizer with this identity."""
    key = {"format": FORMAT, "source": source.identity(), "tokenizer": tokenizer}
    return cache / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def ensure_entry(folder: Path, source: DocumentSource, choose: TokenizerChoice) -> dict[str, Any]:
    """Return the record of ``folder``, after building it if it is not there.

    While another process builds it, this one waits.

    Args:
        folder: See :func:`entry_folder`.
        source: The documents; read only to build.
        choose: Makes the tokenizer; called only to build.

    Raises:
        FileError: If the folder cannot be written or read.
        ValueError: If there is no text, or it does not support the tokenizer.
    """
    record = folder / RECORD_NAME
    if not record.exists():
        _make(folder)
        with _alone(folder):
            if not record.exists():  # nobody built it while this process waited
                remove_leftovers(folder)
                _build(folder, source, choose)
    return read_json(record, remedy=_remedy(folder))


def open_array(path: Path) -> np.ndarray:
    """Map an array into memory, to read.

    Raises:
        FileError: If it is not there, cut short, or no array.
    """
    try:
        mapped: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileError(f"cannot read {path} ({error}); {_remedy(path.parent)}") from error
    array = mapped.view(_MappedArray)
    array.path = path
    return array


class _MappedArray(np.memmap):
    """An array on disk that goes to another process by its path: numpy would send all of its numbers."""

    path: Path | None = None

    def __reduce__(self) -> Any:
        # Slices have no path, and are sent as they are.
        return super().__reduce__() if self.path is None else (open_array, (self.path.absolute(),))


def read_tokenizer(folder: Path) -> BPETokenizer:
    """Read the tokenizer that was trained for ``folder``.

    Raises:
        FileError: If it is not there or damaged.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_NAME
    try:
        return BPETokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # `tokenizers` raises plain Exception
        raise FileError(f"cannot read {path} ({error}); {_remedy(folder)}") from error


class ArrayFile:
    """A ``.npy`` file of numbers in a row, written before it is known how many they are.

    Args:
        file: Where to write; the caller closes it.
        kind: Type of the numbers.
    """

    def __init__(self, file: IO[bytes], kind: np.dtype[Any]) -> None:
        self._file, self._kind = file, kind
        self._write_header(0)
        self._start = file.tell()

    def write(self, numbers: bytes) -> None:
        """Append numbers, given as their bytes."""
        self._file.write(numbers)

    def finish(self, size: int) -> None:
        """Say how many numbers there are."""
        self._file.seek(0)
        self._write_header(size)
        # numpy leaves room for the size to grow, so that the header keeps its length.
        assert self._file.tell() == self._start

    def _write_header(self, size: int) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self._kind), "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def array_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Return where the tokens of a split are, and the starts of its documents."""
    return folder / f"{split}.npy", folder / f"{split}.starts.npy"


def _build(folder: Path, source: DocumentSource, choose: TokenizerChoice) -> None:
    plan = plan_splits(source)
    tokenizer = choose(source, plan)
    if isinstance(tokenizer, BPETokenizer):
        write_atomically(folder / TOKENIZER_NAME, tokenizer.to_json())
    with contextlib.ExitStack() as stack:
        arrays = []
        for name in SPLITS:
            kinds = (id_type(tokenizer.vocab_size), np.dtype(np.int64))
            files = [stack.enter_context(replacing(path)) for path in array_paths(folder, name)]
            arrays.append([ArrayFile(file, kind) for file, kind in zip(files, kinds, strict=True)])
        tally, sizes = write_tokens(source, plan, tokenizer, [SplitFiles(*pair) for pair in arrays])
        for (tokens, starts), size in zip(arrays, sizes, strict=True):
            tokens.finish(size.tokens)
            starts.finish(size.documents)
    write_json(
        folder / RECORD_NAME,
        {
            "name": source.name,
            "tokenizer": tokenizer.identity,
            "split_by": plan.split_by,
            "sha256": tally.digest.hexdigest(),
            "num_documents": tally.num_documents,
            "num_bytes": tally.num_bytes,
            "skipped": dict(sorted(tally.skipped.items())),
            "splits": {name: vars(size) for name, size in zip(SPLITS, sizes, strict=True)},
        },
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cache must be a folder to write to: cannot make {folder} ({error})") from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process, and nobody else in this one, works in ``folder``."""
    with contextlib.ExitStack() as stack:
        told = False
        while True:
            try:
                stack.enter_context(exclusive(folder))
                break
            except DirectoryInUseError as error:
                if not told:
                    _LOGGER.info("waiting for the tokens: %s", error)
                told = True
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield


def _remedy(folder: Path) -> str:
    return f"delete {folder}, then run the same command again"
