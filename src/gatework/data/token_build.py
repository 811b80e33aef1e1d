"""Documents to tokens in three splits: one pass, in batches, into files or memory.

A document lies in one split, which its hash decides. Where there are too few documents for that, so that a
split would be empty, the whole text is cut at 90 and 95 % instead.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from tqdm import tqdm

from gatework.data.cutting import cut_document
from gatework.data.documents import Document, DocumentSource
from gatework.data.tokenizer import ByteTokenizer, TextTokenizer, id_type, train_bpe

#: The splits, in the order in which a text is cut by position.
SPLITS = ("train", "validation", "test")
#: Text that a BPE is trained on, at most.
BPE_SAMPLE_BYTES = 2**25
_TRAIN_SHARE, _VALIDATION_SHARE = 0.90, 0.05
_BATCH_BYTES = 2**20


class SplitPlan(NamedTuple):
    """How the documents are shared out.

    Attributes:
        split_by: ``"document"`` or ``"position"``.
        cuts: With ``"position"``, where the text is cut, counting a byte for the end of each document.
    """

    split_by: Literal["document", "position"]
    cuts: tuple[int, int]


class Piece(NamedTuple):
    """A part of a document in one split.

    Attributes:
        split: Which of :data:`SPLITS`.
        text: Its bytes; empty if only the end of the document lies in this split.
        begins: Whether a document begins here, or the rest of one that the last split began.
        ends: Whether the document ends here.
    """

    split: int
    text: bytes
    begins: bool
    ends: bool


@dataclass
class Tally:
    """What was read."""

    num_documents: int = 0
    num_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def read(self, document: Document) -> Iterator[bytes]:
        """Read a document; its key and content go to the digest, each after its length."""
        self.num_documents += 1
        self.num_bytes += document.num_bytes
        self.digest.update(len(document.key).to_bytes(8, "big") + document.key)
        self.digest.update(document.num_bytes.to_bytes(8, "big"))
        for chunk in document.chunks():
            self.digest.update(chunk)
            yield chunk


@runtime_checkable
class Numbers(Protocol):
    """Where numbers are written, as their bytes: a file."""

    def write(self, numbers: bytes, /) -> Any:
        """Append numbers."""


class SplitFiles(NamedTuple):
    """Where the tokens of a split and the starts of its documents are written."""

    tokens: Numbers
    starts: Numbers


@dataclass
class SplitSize:
    """How much was written.

    Attributes:
        tokens: Number of tokens.
        documents: Number of documents, and rests of documents.
        num_bytes: Bytes of text, one more for each end of a document.
    """

    tokens: int = 0
    documents: int = 0
    num_bytes: int = 0


def plan_splits(source: DocumentSource) -> SplitPlan:
    """Read documents until every split has one, and decide how they are shared out.

    Raises:
        ValueError: If there is no text.
    """
    found, total = set(), 0
    skipped: Counter[str] = Counter()
    for document in source.documents(skipped):
        found.add(_split_of(document))
        total += document.num_bytes + 1
        if len(found) == len(SPLITS):
            return SplitPlan("document", (0, 0))
    if not found:
        raise source.nothing(skipped)
    return SplitPlan(
        "position", (round(total * _TRAIN_SHARE), round(total * (_TRAIN_SHARE + _VALIDATION_SHARE)))
    )


def train_tokenizer(source: DocumentSource, plan: SplitPlan, vocab_size: int) -> TextTokenizer:
    """Train a BPE on the training split, the first :data:`BPE_SAMPLE_BYTES` of it.

    These come from files all over a folder, but from the beginning of a data set or of a single file.

    Raises:
        ValueError: See :func:`gatework.data.tokenizer.train_bpe`.
    """
    pieces = read_pieces(source, plan, Tally(), mixed=plan.split_by == "document")
    with _bar("train tokenizer", None) as bar:
        return train_bpe(_sample(pieces, bar), vocab_size)


def write_tokens(
    source: DocumentSource, plan: SplitPlan, tokenizer: TextTokenizer, files: Sequence[SplitFiles]
) -> tuple[Tally, list[SplitSize]]:
    """Read the documents and write their tokens, in the smallest type that holds them, and ``int64`` starts.

    Memory does not grow with the text: about a megabyte of it is held at a time.

    Args:
        source: The documents.
        plan: How they are shared out.
        tokenizer: Makes the tokens.
        files: Where the splits go.
    """
    tally, sizes = Tally(), [SplitSize() for _ in files]
    whole_characters = not isinstance(tokenizer, ByteTokenizer)
    pieces = read_pieces(source, plan, tally, whole_characters=whole_characters)
    with _bar("tokens", source.size()) as bar:
        for batch in _batches(pieces):
            for piece, ids in zip(batch, tokenizer.encode([piece.text for piece in batch]), strict=True):
                _write(ids, piece, tokenizer, files[piece.split], sizes[piece.split])
                bar.update(len(piece.text))
    return tally, sizes


def read_pieces(
    source: DocumentSource,
    plan: SplitPlan,
    tally: Tally,
    *,
    mixed: bool = False,
    whole_characters: bool = True,
) -> Iterator[Piece]:
    """Read the documents in bounded pieces, each in its split.

    Args:
        source: The documents.
        plan: How they are shared out.
        tally: Counts them.
        mixed: See :meth:`gatework.data.documents.DocumentSource.documents`.
        whole_characters: Whether a cut by position waits for the character before it to end.
    """
    pieces = _pieces_of_documents(source, tally, mixed)
    return pieces if plan.split_by == "document" else _cut_at(plan.cuts, pieces, whole_characters)


def _pieces_of_documents(source: DocumentSource, tally: Tally, mixed: bool) -> Iterator[Piece]:
    for document in source.documents(tally.skipped, mixed=mixed):
        split, begins = _split_of(document), True
        # The empty part after the last says that it was the last.
        for text, following in pairwise(chain(cut_document(tally.read(document)), (b"",))):
            yield Piece(split, text, begins, not following)
            begins = False


def _cut_at(cuts: tuple[int, int], pieces: Iterable[Piece], whole_characters: bool) -> Iterator[Piece]:
    """Share out the pieces by their position."""
    position, split, begins = 0, 0, True
    for piece in pieces:
        text, begins = piece.text, begins or piece.begins
        while split < len(cuts) and position + len(text) >= cuts[split]:
            size = cuts[split] - position
            while whole_characters and 0 < size < len(text) and text[size] & 0xC0 == 0x80:
                size -= 1
            if size > 0:
                yield Piece(split, text[:size], begins, False)
            text, begins, position, split = text[max(size, 0) :], True, position + max(size, 0), split + 1
        if text or piece.ends:
            yield Piece(split, text, begins, piece.ends)
            begins = False
        position += len(text) + piece.ends


def _split_of(document: Document) -> int:
    return (document.share >= _TRAIN_SHARE) + (document.share >= _TRAIN_SHARE + _VALIDATION_SHARE)


def _sample(pieces: Iterable[Piece], bar: tqdm[Any]) -> Iterator[bytes]:
    room = BPE_SAMPLE_BYTES
    for piece in pieces:
        if piece.split == 0:
            if room < len(piece.text):
                return
            room -= len(piece.text)
            bar.update(len(piece.text))
            yield piece.text


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    held = 0
    for piece in pieces:
        batch.append(piece)
        held += len(piece.text) + 1
        if held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _write(
    ids: Integer[np.ndarray, " _"],
    piece: Piece,
    tokenizer: TextTokenizer,
    files: SplitFiles,
    size: SplitSize,
) -> None:
    kind = id_type(tokenizer.vocab_size)
    if piece.begins:
        files.starts.write(np.int64(size.tokens).tobytes())
        size.documents += 1
    files.tokens.write(ids.astype(kind, copy=False).tobytes())
    if piece.ends:
        files.tokens.write(kind.type(tokenizer.end_id).tobytes())
    size.tokens += len(ids) + piece.ends
    size.num_bytes += len(piece.text) + piece.ends


def _bar(what: str, total: int | None) -> tqdm[Any]:
    """Return a progress bar that shows itself on a terminal, if it takes longer than two seconds."""
    return tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False, disable=None, delay=2)
