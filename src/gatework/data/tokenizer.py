"""Tokenizers of text: bytes, a byte-level BPE trained on the text itself, or any fast one of Transformers.

All of them turn documents (UTF-8 bytes) into integer ids and know one token that ends a document. A long
document is encoded in parts, see :mod:`gatework.data.cutting`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Integer

from gatework.checks import check_int
from gatework.data.cutting import cut_document, cut_words
from gatework.data.documents import is_local

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

#: The text of the token that ends a document, id 0 of the tokenizers made here.
END_TOKEN = "<|endoftext|>"
#: Tokens of the smallest BPE: every byte, and the end of a document.
SMALLEST_BPE = 257
# An encoded batch takes some fifty times this.
_BATCH_BYTES = 2**20


@runtime_checkable
class TextTokenizer(Protocol):
    """What the text data needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def end_id(self) -> int:
        """The id that follows each document."""

    @property
    def identity(self) -> str:
        """Short words that say which tokenizer it is, with a digest where there are many."""

    def encode(self, documents: Sequence[bytes]) -> list[Integer[np.ndarray, " _"]]:
        """Return the ids of each document, without the end token."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; what is no whole character becomes U+FFFD."""

    def token_bytes(self) -> Int64[np.ndarray, " vocab"]:
        """Return how many bytes of text each token stands for; the end token counts as 1."""

    def pretrained(self) -> PreTrainedTokenizerFast:
        """Return the same tokenizer for Transformers, to be saved beside a model."""


class ByteTokenizer:
    """A token is a byte; byte 0, which no accepted document contains, ends a document."""

    vocab_size = 256
    end_id = 0
    identity = "bytes"

    def encode(self, documents: Sequence[bytes]) -> list[Integer[np.ndarray, " _"]]:
        """Return the bytes of each document as ``uint8``."""
        return [np.frombuffer(document, dtype=np.uint8) for document in documents]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; what is no whole character becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def token_bytes(self) -> Int64[np.ndarray, " vocab"]:
        """Return 256 ones."""
        return np.ones(self.vocab_size, dtype=np.int64)

    def pretrained(self) -> PreTrainedTokenizerFast:
        """Return the same tokenizer for Transformers; :data:`END_TOKEN` takes the place of byte 0."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        characters = _byte_characters()
        vocab = {END_TOKEN: 0, **{characters[byte]: byte for byte in range(1, 256)}}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_TOKEN])
        return _pretrained(tokenizer, END_TOKEN)


class BPETokenizer:
    """A tokenizer of the ``tokenizers`` library: one that :func:`train_bpe` made, or a loaded one.

    Args:
        tokenizer: The tokenizer. Special tokens written out in a text are read as text, and none are added.
        end_token: Its token that ends a document.
        name: The first word of :attr:`identity`.

    Raises:
        ValueError: If it has no token ``end_token``.
    """

    def __init__(self, tokenizer: Tokenizer, *, end_token: str = END_TOKEN, name: str = "bpe") -> None:
        end_id = tokenizer.token_to_id(end_token)
        if end_id is None:
            raise ValueError(f"end_token must be a token of the tokenizer, got {end_token!r}")
        self._tokenizer = _own_copy(tokenizer.to_str())
        self._end_token = end_token
        self.end_id: int = end_id
        # Ids may have gaps: a model needs a row for the largest.
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.identity = f"{name} {self.vocab_size} {hashlib.sha256(self.to_json().encode()).hexdigest()[:12]}"

    def __getstate__(self) -> dict[str, Any]:
        # Of the tokenizer, pickle would forget that the end token written in a text is text.
        return {**self.__dict__, "_tokenizer": self.to_json()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer = _own_copy(state["_tokenizer"])

    def encode(self, documents: Sequence[bytes]) -> list[Integer[np.ndarray, " _"]]:
        """Return the ids of each document in the smallest unsigned type that holds them.

        Half a character at the beginning or end, which a limit on bytes can leave, is dropped.
        """
        found: list[list[np.ndarray]] = [[] for _ in documents]
        for numbers, parts in _batches(documents):
            encoded = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
            for number, encoding in zip(numbers, encoded, strict=True):
                found[number].append(np.array(encoding.ids, dtype=id_type(self.vocab_size)))
        empty = np.zeros(0, dtype=id_type(self.vocab_size))
        return [np.concatenate([empty, *pieces]) for pieces in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``; what is no whole character becomes U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_bytes(self) -> Int64[np.ndarray, " vocab"]:
        """Return how many bytes of text each token stands for; special and unknown tokens count as 1.

        Exact for byte-level tokenizers and for byte fallback; a tokenizer that normalises text or drops
        spaces has no exact number, and gets the length of its tokens.
        """
        sizes = np.ones(self.vocab_size, dtype=np.int64)
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self.to_json())["decoder"])
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if token in special or re.fullmatch("<0x[0-9A-F]{2}>", token):
                continue
            sizes[index] = (
                len(token) if byte_level else len(token.removeprefix("##").replace("▁", " ").encode())
            )
        return sizes

    def to_json(self) -> str:
        """Return what a ``tokenizer.json`` holds."""
        text: str = self._tokenizer.to_str()
        return text

    def pretrained(self) -> PreTrainedTokenizerFast:
        """Return the same tokenizer for Transformers."""
        from tokenizers import Tokenizer

        return _pretrained(Tokenizer.from_str(self.to_json()), self._end_token)


def train_bpe(documents: Iterable[bytes], vocab_size: int) -> BPETokenizer:
    """Train a byte-level BPE: the most frequent pair of neighbouring tokens becomes a token, again and again.

    The result follows from the documents alone, whatever their order and the number of threads. Ids are the
    end of a document, the 256 bytes, and then the merges; a pair must occur twice to become a token.

    Args:
        documents: UTF-8 text. Words are counted as it comes, it is not kept.
        vocab_size: Number of tokens.

    Raises:
        TypeError: If ``vocab_size`` is no integer.
        ValueError: If it is below 257 or larger than the text supports.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    check_int("vocab_size", vocab_size, at_least=0)
    if vocab_size < SMALLEST_BPE:
        raise ValueError(
            f"vocab_size must be at least {SMALLEST_BPE}, one token for each byte and one for the end of a "
            f"document, got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    parts = (part for document in documents for part in cut_document([document]))
    words = (piece for part in parts for piece in cut_words(part.decode(errors="ignore")))
    tokenizer.train_from_iterator(words, trainer)
    supported = tokenizer.get_vocab_size()
    if supported < vocab_size:
        raise ValueError(
            f"vocab_size must be at most {supported}, the tokens that this text supports (no further pair of "
            f"tokens occurs twice), got {vocab_size}"
        )
    return BPETokenizer(tokenizer)


def load_tokenizer(name_or_path: str | os.PathLike[str]) -> BPETokenizer:
    """Load a fast tokenizer of Transformers or of the ``tokenizers`` library.

    Args:
        name_or_path: A folder that ``save_pretrained`` wrote, a ``tokenizer.json``, or a name on the hub.

    Raises:
        ValueError: If there is none, it is not a fast one or empty, or has no token that ends a document.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    path = Path(name_or_path)
    shown = f"tokenizer={str(name_or_path)!r}"
    if not path.exists():
        # The hub is asked last: without a network its answer takes a minute.
        if is_local(name_or_path):
            raise ValueError(
                f"{shown} must be 'bytes', 'bpe' or the path of a tokenizer, which does not exist"
            )
        if meant := difflib.get_close_matches(str(name_or_path).lower(), ("bytes", "bpe"), n=1, cutoff=0.8):
            raise ValueError(f"{shown} is no tokenizer; did you mean {meant[0]!r}?")
    loaded: Any
    end: Any
    try:
        if path.is_file():
            loaded = Tokenizer.from_file(str(path))
            known = (END_TOKEN, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
            end = next((token for token in known if loaded.token_to_id(token) is not None), None)
        else:
            wrapped = AutoTokenizer.from_pretrained(str(name_or_path), trust_remote_code=False)
            loaded, end = getattr(wrapped, "backend_tokenizer", None), wrapped.eos_token
    except Exception as error:  # the libraries raise anything, from plain Exception to OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{shown} must be 'bytes', 'bpe', the path of a tokenizer or its name on the hub, but it cannot "
            f"be loaded: {reason[:200]}"
        ) from error
    if loaded is None:
        raise ValueError(f"{shown} is a slow tokenizer; only fast ones (with a tokenizer.json) can be used")
    if end is None:
        raise ValueError(
            f"{shown} has no token that ends a document: set eos_token of the Transformers tokenizer and "
            "save it with save_pretrained, then name that folder"
        )
    name = path.resolve().name if path.exists() else str(path)
    tokenizer = BPETokenizer(loaded, end_token=str(end), name=name)
    if not len(tokenizer.encode([b"text"])[0]):  # Transformers makes one up for folders of some models
        raise ValueError(f"{shown} is an empty tokenizer; name a folder with a tokenizer.json")
    return tokenizer


def id_type(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer type that holds the ids below ``vocab_size``."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


def _batches(documents: Iterable[bytes]) -> Iterator[tuple[list[int], list[str]]]:
    """Yield parts of the documents in batches, and the number of the document that each belongs to."""
    numbers: list[int] = []
    parts: list[str] = []
    held = 0
    for number, document in enumerate(documents):
        for part in cut_document([document]):
            numbers.append(number)
            parts.append(part.decode(errors="ignore"))
            held += len(part)
            if held >= _BATCH_BYTES:
                yield numbers, parts
                numbers, parts, held = [], [], 0
    if parts:
        yield numbers, parts


def _own_copy(serialized: str) -> Tokenizer:
    """Return a tokenizer that encodes all of a text, and as text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _byte_characters() -> list[str]:
    """Return the character that byte-level tokenizers write for each byte."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _pretrained(tokenizer: Tokenizer, end_token: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end_token, clean_up_tokenization_spaces=False
    )
    return wrapped
