"""Byte-level language modelling on real text; Python's own standard library unless another is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Subset

from gatework.data.checks import check_int
from gatework.data.loader import ResumableLoader
from gatework.data.segment import TokenBatch
from gatework.data.text import (
    VOCAB_SIZE,
    TextCorpus,
    TextCrops,
    TextWindows,
    load_standard_library,
    load_text,
)
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.registry import suggestion
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Quality, Training

#: The corpus that needs no path.
STANDARD_LIBRARY = "stdlib"
_TEST_BATCH = 64
_Evaluated = Literal["validation", "test"]


@dataclass(frozen=True)
class TextTask:
    """Predict the next byte of a text.

    Attributes:
        corpus: ``"stdlib"``, or the path of a text file or folder.
        suffixes: Take only files of the folder whose names end so.
        max_bytes: Use no more of the corpus than this.
        length: Bytes per sequence.
        num_test: Evaluate on this many sequences of the test split, spread evenly over it; 0 for all.
        num_validation: Choose by this many of the validation split, likewise; None for ``num_test``.
    """

    corpus: str = STANDARD_LIBRARY
    suffixes: tuple[str, ...] | None = None
    max_bytes: int | None = None
    length: int = 256
    num_test: int = 256
    num_validation: int | None = None

    quality = Quality("bits per byte", "lower", unit="bits per byte", chance=8.0)

    def __post_init__(self) -> None:
        check_int("length", self.length, at_least=2)
        check_int("num_test", self.num_test, at_least=0)
        if self.num_validation is not None:
            check_int("num_validation", self.num_validation, at_least=0)
        for split in get_args(_Evaluated):
            self._windows(split)  # refuses a corpus without enough text

    @classmethod
    def from_setting(cls, setting: Mapping[str, Any]) -> TextTask:
        """Make the task from a JSON setting with the attributes as keys.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is out of range, or there is no text.
        """
        options = dict(setting)
        known = [field.name for field in fields(cls)]
        for option in options:
            if option not in known:
                raise TypeError(f"task 'text' has no option {option!r}{suggestion(option, known)}")
        if options.get("suffixes") is not None:
            options["suffixes"] = tuple(options["suffixes"])
        return cls(**options)

    @property
    def vocab_size(self) -> int:
        """Number of bytes."""
        return VOCAB_SIZE

    def describe(self) -> list[str]:
        """Return a sentence each on the corpus, the validation and the test windows."""
        corpus = self._load()
        validation, test = len(self._windows("validation")), len(self._windows("test"))
        apart = "documents" if corpus.split_by == "document" else "a part of the text"
        return [
            f"Corpus: {corpus.name}, {corpus.num_documents:,} documents, {corpus.num_bytes:,} bytes, "
            f"sha256 {corpus.sha256}, split by {corpus.split_by}; {corpus.num_skipped} files skipped. "
            "Training reads random stretches, the same for every mixer.",
            f"Validation data: {validation:,} stretches of {self.length} bytes of {apart} not trained on; "
            "whatever is chosen is chosen by them.",
            f"Test data: {test:,} stretches of {self.length} bytes of {apart} used for neither.",
        ]

    def train_batches(self, batch_size: int, *, steps: int, seed: int) -> Iterable[TokenBatch]:
        """Return ``steps`` batches of random stretches; ``seed`` chooses them."""
        crops = TextCrops(self._load(), self.length, num_examples=steps * batch_size, seed=seed)
        return ResumableLoader(crops, batch_size, seed=seed, collate=_collate)

    def validation_batches(self) -> Iterable[TokenBatch]:
        """Return the validation windows in order."""
        return ResumableLoader(self._windows("validation"), _TEST_BATCH, collate=_collate)

    def test_batches(self) -> Iterable[TokenBatch]:
        """Return the test windows in order."""
        return ResumableLoader(self._windows("test"), _TEST_BATCH, collate=_collate)

    def module(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> NextTokenModule:
        """Return the Lightning module that trains ``model``."""
        return BitsPerByteModule(model, training, learning_rate)

    def _load(self) -> TextCorpus:
        return _corpus(self.corpus, self.suffixes, self.max_bytes)

    def _windows(self, split: _Evaluated) -> TextWindows | Subset[tuple[Tensor, Tensor]]:
        windows = TextWindows(self._load(), self.length, split=split)
        wanted = self.num_test
        if split == "validation" and self.num_validation is not None:
            wanted = self.num_validation
        if wanted == 0 or wanted >= len(windows):
            return windows
        return Subset(windows, [i * len(windows) // wanted for i in range(wanted)])


class BitsPerByteModule(NextTokenModule):
    """Next-token training whose headline number is the code length of a byte."""

    def quality(self) -> float:
        """Return the mean loss in bits."""
        loss: float = self.summary["loss"]
        return loss / math.log(2)

    def predictions(self, batch: TokenBatch) -> list[dict[str, Any]]:
        """Return what ``gatework predict`` writes of each window: its text and its bits per byte."""
        logits, labels = self.model.labelled_logits(batch.inputs, batch.labels)
        nats = F.cross_entropy(logits.float(), labels, reduction="none").view_as(batch.labels)
        bits = (nats.double() / math.log(2)).mean(1)
        return [
            {"text": bytes(inputs.tolist()).decode(errors="replace"), "bits_per_byte": value}
            for inputs, value in zip(batch.inputs, bits.tolist(), strict=True)
        ]


@lru_cache(maxsize=4)
def _corpus(name: str, suffixes: tuple[str, ...] | None, max_bytes: int | None) -> TextCorpus:
    """Read a corpus once per process."""
    if name == STANDARD_LIBRARY:
        if suffixes is not None:
            raise ValueError("suffixes belongs to a corpus of your own, not to corpus='stdlib'")
        return load_standard_library(max_bytes=max_bytes)
    return load_text(name, suffixes=suffixes, max_bytes=max_bytes)


def _collate(examples: list[tuple[Tensor, Tensor]]) -> TokenBatch:
    inputs, labels = (torch.stack(column) for column in zip(*examples, strict=True))
    return TokenBatch(inputs, labels, [])
