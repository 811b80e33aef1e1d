"""Documents of a data set of the ``datasets`` library, read in streaming mode."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gatework.checks import check_choice, check_int, suggestion
from gatework.data.documents import BINARY, EMPTY, NOT_UTF8, Document, files, is_local, skipped_words

# How `datasets` calls the reader of a file.
_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}
_BYTE_ORDER_MARK = "\ufeff"
_BATCH_ROWS = 32


@dataclass(frozen=True)
class DatasetSource:
    """The texts of one column, a document per row, in the order of the data set.

    The hash of a document is that of its content: others do not move it, and equal ones share a split.

    Args:
        dataset: A name on the hub, a folder of data files, a JSON, Parquet, CSV or Arrow file, or a folder
            that ``save_to_disk`` wrote.
        config: Configuration of the data set; None for its only one.
        split: Which of its splits to read. It is split again into training, validation and test.
        text_column: The column.
        max_bytes: Read no more than this: documents from the beginning, the last one cut.

    Raises:
        ValueError: If the library is missing, ``max_bytes`` is below 1, or there is no such path.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            check_int("max_bytes", self.max_bytes, at_least=1)
        _library()
        if is_local(self.dataset) and not Path(self.dataset).exists():
            raise ValueError(
                f"dataset={self.dataset!r} must be a path or a name on the hub, and does not exist"
            )

    @property
    def name(self) -> str:
        """Where the documents come from, in words."""
        config = "" if self.config is None else f", configuration {self.config}"
        return f"data set {self.dataset}{config}, split {self.split}, column {self.text_column}"

    def size(self) -> int | None:
        """Return None: it is not known before they are read."""
        return None

    def identity(self) -> Mapping[str, Any]:
        """Name the data set and the options; of a local one hash names, sizes and times of its files too.

        One on the hub is known by its name alone: a new version there is not noticed.
        """
        of_files = files(self.dataset).identity() if Path(self.dataset).exists() else {}
        return {
            "dataset": self.dataset,
            "config": self.config,
            "split": self.split,
            "text_column": self.text_column,
            **of_files,
            "max_bytes": self.max_bytes,
        }

    def documents(self, skipped: Counter[str], *, mixed: bool = False) -> Iterator[Document]:
        """Read the documents in the order of the data set, ``mixed`` or not.

        Raises:
            TypeError: If the column holds something other than text.
            ValueError: If there is no such data set, split or column.
        """
        room = self.max_bytes
        for number, text in enumerate(self._texts()):
            if room == 0:
                return
            if text is not None and not isinstance(text, str):
                raise TypeError(
                    f"text_column must name a column of text, but {self.text_column!r} of {self.dataset} "
                    f"holds {type(text).__name__} in row {number}"
                )
            document = _document(str(number), text or "", room)
            if isinstance(document, str):
                skipped[document] += 1
                continue
            yield document
            room = None if room is None else room - document.num_bytes

    def nothing(self, skipped: Mapping[str, int]) -> ValueError:
        """Return the error that says that there is no text."""
        return ValueError(f"no text in {self.name}: {skipped_words(skipped)}")

    def _texts(self) -> Iterator[Any]:
        # In batches, because `datasets` takes as long for a row as for many.
        for batch in self._rows.iter(batch_size=_BATCH_ROWS):
            yield from batch[self.text_column]

    @cached_property
    def _rows(self) -> Any:
        """Open the data set; it is read anew with every iteration."""
        rows = _open(self.dataset, self.config, self.split)
        first = next(iter(rows), None)
        if first is not None and self.text_column not in first:
            raise ValueError(
                f"text_column must be a column of {self.dataset}, got {self.text_column!r}"
                + suggestion(self.text_column, sorted(first))
            )
        return rows if first is None else rows.select_columns([self.text_column])


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            "dataset needs the library datasets, which is not installed: pip install 'gatework[datasets]'"
        ) from error
    return datasets


def _open(dataset: str, config: str | None, split: str) -> Any:
    """Open one split of a data set without reading it."""
    library, path = _library(), Path(dataset)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = library.load_from_disk(dataset)
            # A saved data set without splits has the name `datasets` gives to all rows.
            splits = dict(saved) if isinstance(saved, library.DatasetDict) else {"train": saved}
            check_choice("dataset_split", split, tuple(splits))
            return splits[split]
        if path.is_file():
            reader = _READERS.get(path.suffix)
            if reader is None:
                raise ValueError(f"a file must end in {', '.join(_READERS)}; for plain text use corpus")
            return library.load_dataset(reader, data_files=dataset, split=split, streaming=True)
        return library.load_dataset(dataset, config, split=split, streaming=True)
    except Exception as error:  # the library raises its own, those of pandas, Arrow, HTTP, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"dataset={dataset!r}, split {split!r} cannot be opened: {reason[:300]}") from error


def _document(number: str, text: str, room: int | None) -> Document | str:
    """Return a row as a document of at most ``room`` bytes, or why it is no text."""
    try:
        content = text.removeprefix(_BYTE_ORDER_MARK).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return NOT_UTF8
    if not content:
        return EMPTY
    if b"\0" in content:
        return BINARY
    share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    content = content[:room]
    return Document(number.encode(), share, len(content), lambda: iter([content]))
