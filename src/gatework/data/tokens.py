"""Text as tokens in three splits: documents one after another, each followed by the tokenizer's end token."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt

from gatework.checks import check_choice
from gatework.data.dataset_documents import DatasetSource
from gatework.data.documents import DocumentSource, files, standard_library
from gatework.data.token_build import (
    SPLITS,
    SplitFiles,
    SplitPlan,
    plan_splits,
    train_tokenizer,
    write_tokens,
)
from gatework.data.token_store import array_paths, ensure_entry, entry_folder, open_array, read_tokenizer
from gatework.data.tokenizer import ByteTokenizer, TextTokenizer, id_type, load_tokenizer

#: The corpus that needs no path.
STANDARD_LIBRARY = "stdlib"
#: Tokens of ``tokenizer="bpe"`` unless told otherwise.
BPE_VOCAB_SIZE = 4096

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class TokenSplit:
    """One split as tokens.

    Attributes:
        tokens: The documents one after another, each followed by the end token, in the smallest unsigned type
            that holds the vocabulary; an array in memory or on disk.
        starts: Position of the first token of each document, or of what a cut by position left of one.
        num_bytes: Bytes of the text that the tokens stand for, one more for each end token.
    """

    tokens: UInt[np.ndarray, " tokens"]
    starts: Int64[np.ndarray, " documents"]
    num_bytes: int


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """A text as tokens in three splits, with what identifies it.

    Attributes:
        name: Where the text comes from, in words.
        tokenizer: What made the tokens.
        train: Tokens to train on, about 90 %.
        validation: Tokens to choose by, about 5 %.
        test: Tokens to report on, about 5 %.
        sha256: Digest over path (or number) and content of all documents, in their order.
        num_documents: Number of documents used.
        num_bytes: Their bytes, ends of documents not counted.
        skipped: Number of documents left out, by reason: see :mod:`gatework.data.documents`.
        split_by: ``"document"``: a document lies in one split, which a hash of its path (of its content, in a
            data set) decides, so that adding others does not move it. ``"position"``: there are too few
            documents for that, and the whole text is cut at 90 and 95 % of its bytes.
    """

    name: str
    tokenizer: TextTokenizer
    train: TokenSplit
    validation: TokenSplit
    test: TokenSplit
    sha256: str
    num_documents: int
    num_bytes: int
    skipped: Mapping[str, int]
    split_by: Literal["document", "position"]

    def split(self, name: Split) -> TokenSplit:
        """Return the split called ``name``.

        Raises:
            ValueError: If there is none of that name.
        """
        check_choice("split", name, SPLITS)
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def load_tokens(
    corpus: str | os.PathLike[str] = STANDARD_LIBRARY,
    *,
    tokenizer: str = "bytes",
    vocab_size: int | None = None,
    suffixes: Sequence[str] | None = None,
    max_bytes: int | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    text_column: str = "text",
    cache: str | os.PathLike[str] | None = None,
) -> TokenCorpus:
    """Load a text as tokens.

    Args:
        corpus: ``"stdlib"`` for the source of the running Python's standard library, or a text file, or a
            folder whose files are documents.
        tokenizer: ``"bytes"``; ``"bpe"``, trained on the training split; or a fast tokenizer of Transformers:
            a folder, a ``tokenizer.json``, or a name on the hub.
        vocab_size: Number of tokens of ``"bpe"``; None for 4096.
        suffixes: Take only files of the folder whose names end so, such as ``[".txt", ".md"]``.
        max_bytes: Use no more than this: of files, whole ones that a hash chooses; of a data set, its
            beginning. The document that does not fit is cut.
        dataset: In place of ``corpus``, what ``datasets.load_dataset`` takes, or a local file or folder: see
            :class:`gatework.data.dataset_documents.DatasetSource`. It is streamed.
        dataset_config: Its configuration.
        dataset_split: Its split, which is split again.
        text_column: Its column of text; a row is a document.
        cache: Folder to keep tokens in. They are written once, by one process while others wait, and then
            mapped into memory: the text may be larger than memory, and is not read again until the names,
            sizes or times of its files change (a data set on the hub: its name). None for memory.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range or does not go with the others, there is no text, the text
            does not support ``vocab_size``, or the library ``datasets`` is missing.
        FileError: If the cache cannot be written or read.
        OSError: If a file cannot be read.
    """
    if vocab_size is not None and tokenizer != "bpe":
        raise ValueError(
            f"vocab_size belongs to tokenizer='bpe', got {vocab_size} with tokenizer={tokenizer!r}"
        )
    source: DocumentSource
    if dataset is None:
        _check_without_dataset(dataset_config, dataset_split, text_column)
        source = _files(corpus, suffixes, max_bytes)
    else:
        if corpus != STANDARD_LIBRARY or suffixes is not None:
            raise ValueError(
                f"dataset replaces corpus and suffixes, got dataset={dataset!r} with corpus={str(corpus)!r}, "
                f"suffixes={suffixes!r}"
            )
        source = DatasetSource(dataset, dataset_config, dataset_split, text_column, max_bytes)
    choice = _TokenizerChoice(tokenizer, BPE_VOCAB_SIZE if vocab_size is None else vocab_size)
    return _in_memory(source, choice) if cache is None else _on_disk(Path(cache), source, choice)


class _TokenizerChoice:
    """The tokenizer that the caller named, which may have to be trained."""

    def __init__(self, name: str, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.ready: TextTokenizer | None = None
        if name != "bpe":
            self.ready = ByteTokenizer() if name == "bytes" else load_tokenizer(name)

    @property
    def identity(self) -> str:
        return f"bpe {self.vocab_size}" if self.ready is None else self.ready.identity

    def __call__(self, source: DocumentSource, plan: SplitPlan) -> TextTokenizer:
        return train_tokenizer(source, plan, self.vocab_size) if self.ready is None else self.ready

    def stored(self, folder: Path) -> TextTokenizer:
        """Return the tokenizer that made the tokens in ``folder``."""
        return read_tokenizer(folder) if self.ready is None else self.ready


def _check_without_dataset(config: str | None, split: str, text_column: str) -> None:
    options = (
        ("dataset_config", config, None),
        ("dataset_split", split, "train"),
        ("text_column", text_column, "text"),
    )
    for name, value, default in options:
        if value != default:
            raise ValueError(f"{name} belongs to a dataset, got {value!r} without one")


def _files(
    corpus: str | os.PathLike[str], suffixes: Sequence[str] | None, max_bytes: int | None
) -> DocumentSource:
    if corpus != STANDARD_LIBRARY:
        return files(corpus, suffixes=suffixes, max_bytes=max_bytes)
    if suffixes is not None:
        raise ValueError("suffixes belongs to a corpus of your own, not to corpus='stdlib'")
    return standard_library(max_bytes=max_bytes)


def _in_memory(source: DocumentSource, choice: _TokenizerChoice) -> TokenCorpus:
    plan = plan_splits(source)
    tokenizer = choice(source, plan)
    buffers = [(BytesIO(), BytesIO()) for _ in SPLITS]
    tally, sizes = write_tokens(source, plan, tokenizer, [SplitFiles(*pair) for pair in buffers])
    train, validation, test = (
        TokenSplit(
            np.frombuffer(tokens.getvalue(), dtype=id_type(tokenizer.vocab_size)),
            np.frombuffer(starts.getvalue(), dtype=np.int64),
            size.num_bytes,
        )
        for (tokens, starts), size in zip(buffers, sizes, strict=True)
    )
    return TokenCorpus(
        name=source.name,
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        test=test,
        sha256=tally.digest.hexdigest(),
        num_documents=tally.num_documents,
        num_bytes=tally.num_bytes,
        skipped=dict(sorted(tally.skipped.items())),
        split_by=plan.split_by,
    )


def _on_disk(cache: Path, source: DocumentSource, choice: _TokenizerChoice) -> TokenCorpus:
    folder = entry_folder(cache, source, choice.identity)
    record: dict[str, Any] = ensure_entry(folder, source, choice)
    splits = []
    for name in SPLITS:
        tokens, starts = map(open_array, array_paths(folder, name))
        splits.append(TokenSplit(tokens, starts, record["splits"][name]["num_bytes"]))
    train, validation, test = splits
    return TokenCorpus(
        name=record["name"],
        tokenizer=choice.stored(folder),
        train=train,
        validation=validation,
        test=test,
        sha256=record["sha256"],
        num_documents=record["num_documents"],
        num_bytes=record["num_bytes"],
        skipped=record["skipped"],
        split_by=record["split_by"],
    )
