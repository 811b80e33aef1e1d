"""Language modelling on real text; Python's own standard library unless another corpus is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from gatework.checks import check_choice, check_int, check_names, check_number, check_text, check_texts
from gatework.data.ar_slices import BigramCounts, candidate_bigrams, max_train_count_for
from gatework.data.documents import skipped_words
from gatework.data.loader import ResumableLoader
from gatework.data.packing import PackedRows, PaddedRows
from gatework.data.segment import TokenBatch
from gatework.data.text import TextCrops, TextWindows, spread_evenly
from gatework.data.token_store import open_array
from gatework.data.tokenizer import TextTokenizer
from gatework.data.tokens import TokenCorpus, load_tokens
from gatework.files import replacing
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.continue_text import continue_text, tokenizer_beside
from gatework.tasks.language import LanguageTask
from gatework.tasks.module import TaskModule
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Prediction, Quality, Training
from gatework.tasks.text_declaration import TEXT
from gatework.tasks.text_module import Recalled, TextModule

#: The share of AR hits that the paper reports at its full scale (arXiv:2312.04927, section 3).
PUBLISHED_AR_SHARE = 0.064
#: Positions per batch of the evaluation, and its most rows.
_TEST_POSITIONS, _TEST_ROWS = 16384, 64
#: Padded batches are as wide as a multiple of this: few widths, for each of which a study counts the cost.
_WIDTH_STEP = 64
Packing = Literal["crops", "packed", "padded"]
_Evaluated = Literal["validation", "test"]
_Example = tuple[Tensor, ...]


@dataclass(frozen=True)
class TextSource:
    """Where the tokens come from: the arguments of :func:`~gatework.data.tokens.load_tokens`.

    Attributes:
        corpus: ``"stdlib"``, or the path of a text file or folder.
        suffixes: Take only files of the folder whose names end so.
        max_bytes: Use no more of the corpus than this.
        tokenizer: ``"bytes"``, ``"bpe"`` (trained on the training documents), or the path or hub name of one.
        vocab_size: Tokens of a trained tokenizer.
        dataset: Name or path for ``datasets.load_dataset``, in place of ``corpus``.
        dataset_config: Its configuration.
        dataset_split: Its split that holds the documents.
        text_column: Its column that holds the text.
        cache: Folder that keeps the tokens on disk, for corpora larger than memory.
    """

    corpus: str = "stdlib"
    suffixes: tuple[str, ...] | None = None
    max_bytes: int | None = None
    tokenizer: str = "bytes"
    vocab_size: int | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_column: str = "text"
    cache: str | None = None


@dataclass(frozen=True)
class TextTask(LanguageTask):
    """Predict the next token of a text.

    Scores are bits per byte, whatever the tokens; unless these are bytes, the loss is also given on recalled
    bigrams (AR hits, :mod:`gatework.data.ar_slices`) and on all other tokens.

    Attributes:
        source: Corpus and tokenizer.
        length: Tokens per sequence.
        num_test: Evaluate on this many sequences of the test split, spread evenly over it; 0 for all.
        num_validation: Choose by this many of the validation split, likewise; None for ``num_test``.
        packing: ``"crops"``: random stretches, in which one document follows another. ``"packed"``: documents
            end to end, each a context of its own. ``"padded"``: one document, or piece of one, per sequence.
        max_train_count: Bigrams seen more often than this in the training tokens are no AR hits; None for
            the number whose share of AR hits in the test data is nearest to ``ar_share``.
        ar_share: That share; the published one by default, because slices compare only at similar shares.
    """

    declaration = TEXT

    source: TextSource = field(default_factory=TextSource)
    length: int = 256
    num_test: int = 256
    num_validation: int | None = None
    packing: Packing = "crops"
    max_train_count: int | None = None
    ar_share: float = PUBLISHED_AR_SHARE

    def __post_init__(self) -> None:
        check_int("length", self.length, at_least=2)
        check_int("num_test", self.num_test, at_least=0)
        if self.num_validation is not None:
            check_int("num_validation", self.num_validation, at_least=0)
        check_choice("packing", self.packing, get_args(Packing))
        if self.max_train_count is not None:
            check_int("max_train_count", self.max_train_count, at_least=0)
        check_number("ar_share", self.ar_share, above=0, below=1)
        for split in get_args(_Evaluated):
            self._evaluated(split)  # refuses a corpus without enough text

    @classmethod
    def from_setting(cls, setting: Mapping[str, Any]) -> TextTask:
        """Make the task from a JSON setting with its attributes and those of :class:`TextSource` as keys.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is out of range, or there is no text.
        """
        options = dict(setting)
        of_source = [entry.name for entry in fields(TextSource)]
        known = of_source + [entry.name for entry in fields(cls) if entry.name != "source"]
        check_names("task 'text' has no option", options, known)
        source = {name: options.pop(name) for name in of_source if name in options}
        for name, value in source.items():
            if name == "suffixes" and value is not None:
                source[name] = check_texts(name, value)
            elif name not in ("max_bytes", "vocab_size") and value is not None:
                check_text(name, value)
        return cls(TextSource(**source), **options)

    @property
    def quality(self) -> Quality:
        """The code length of a byte; guessing bytes needs 8 bits."""
        chance = 8.0 if self.source.tokenizer == "bytes" else None
        return Quality("bits per byte", "lower", unit="bits per byte", chance=chance)

    @property
    def tokenizer(self) -> TextTokenizer:
        """What cuts the text into tokens."""
        return self._load().tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.tokenizer.vocab_size

    def describe(self) -> list[str]:
        """Return a sentence each on the corpus, the validation and test sequences, and the AR hits."""
        corpus = self._load()
        apart = "documents" if corpus.split_by == "document" else "a part of the text"
        reads = {
            "crops": "random stretches, the same for every mixer",
            "packed": "documents end to end, none of which sees another",
            "padded": "one document or piece of a document at a time",
        }[self.packing]
        sentences = [
            f"Corpus: {corpus.name}, {corpus.num_documents:,} documents, {corpus.num_bytes:,} bytes, "
            f"sha256 {corpus.sha256}, split by {corpus.split_by}; {skipped_words(corpus.skipped)}. "
            f"Training reads {reads}.",
            f"Tokens: {corpus.tokenizer.identity}; {len(corpus.train.tokens):,} of them to train on.",
        ]
        uses: dict[_Evaluated, str] = {
            "validation": "not trained on; whatever is chosen is chosen by them",
            "test": "used for neither",
        }
        for split, use in uses.items():
            count = len(self._evaluated(split))
            sentences.append(
                f"{split.capitalize()} data: {count:,} sequences of {self.length} tokens of {apart} {use}."
            )
        if (recalled := self.recalled()) is not None:
            batch = _together(self._evaluated("test"))
            share = recalled.hits(batch).sum().item() / (batch.labels >= 0).sum().item()
            sentences.append(
                f"AR hits: bigrams that occurred earlier in their context and at most "
                f"{recalled.max_train_count:,} times in the {recalled.counts.num_tokens:,} training tokens; "
                f"{share:.1%} of the test tokens."
            )
        return sentences

    def recalled(self) -> Recalled | None:
        """Return what tells AR hits from other tokens; None for bytes, of which every pair is frequent."""
        return None if self.source.tokenizer == "bytes" else _recalled(self)

    def train_batches(self, batch_size: int, *, steps: int, seed: int) -> Iterable[TokenBatch]:
        """Return batches to train on, ``steps`` of them for crops; ``seed`` chooses or orders them."""
        if self.packing == "crops":
            crops = TextCrops(self._load(), self.length, num_examples=steps * batch_size, seed=seed)
            return ResumableLoader(crops, batch_size, seed=seed, collate=collate)
        return ResumableLoader(self._rows("train"), batch_size, seed=seed, shuffle=True, collate=collate)

    def batches_per_epoch(self, batch_size: int) -> int | None:
        """Return the batches of one pass over the training documents; None for crops, which have no end."""
        return None if self.packing == "crops" else -(-len(self._rows("train")) // batch_size)

    def validation_batches(self) -> Iterable[TokenBatch]:
        """Return the validation sequences in order."""
        return self._evaluation("validation")

    def test_batches(self) -> Iterable[TokenBatch]:
        """Return the test sequences in order."""
        return self._evaluation("test")

    def module(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> NextTokenModule:
        """Return the Lightning module that trains ``model``."""
        return TextModule(model, training, learning_rate, self.tokenizer, self.recalled())

    def predict(self, module: TaskModule, request: Prediction) -> Iterable[dict[str, Any]] | str:
        """Return a row for each sequence of the split, or the prompt with its continuation."""
        if request.options.prompt is None:
            return super().predict(module, request)
        assert isinstance(module, NextTokenModule)
        return str(request.options.prompt) + continue_text(
            module.model,
            tokenizer_beside(request.weights, self.tokenizer),
            request.options.prompt,
            max_new_tokens=request.options.max_new_tokens,
            temperature=request.options.temperature,
            seed=request.seed,
        )

    def _load(self) -> TokenCorpus:
        return _corpus(self.source)

    def _evaluation(self, split: _Evaluated) -> ResumableLoader[TokenBatch]:
        rows = max(1, min(_TEST_ROWS, _TEST_POSITIONS // self.length))
        return ResumableLoader(self._evaluated(split), rows, collate=collate)

    def _evaluated(self, split: _Evaluated) -> Subset[_Example]:
        """The sequences of a split, spread evenly over it."""
        data = self._rows(split)
        count = self.num_test
        if split == "validation" and self.num_validation is not None:
            count = self.num_validation
        return spread_evenly(data, count or len(data))

    def _rows(self, split: Literal["train", "validation", "test"]) -> _Rows:
        """The sequences of a split in the form of ``packing``; stretches one after another for crops."""
        corpus = self._load()
        if self.packing == "crops":
            return TextWindows(corpus, self.length, split=split)
        end = corpus.tokenizer.end_id
        if self.packing == "packed":
            return PackedRows(corpus.split(split), end, self.length, seed=0)
        return PaddedRows(corpus.split(split), end, self.length)


_Rows = TextWindows | PackedRows | PaddedRows


@lru_cache(maxsize=4)
def _corpus(source: TextSource) -> TokenCorpus:
    """Read a corpus once per process."""
    return load_tokens(**asdict(source))


@lru_cache(maxsize=4)
def _recalled(task: TextTask) -> Recalled:
    """Count the bigrams of the training tokens that occur in what is evaluated, once per process."""
    corpus = task._load()
    tokens = {split: _together(task._evaluated(split)) for split in get_args(_Evaluated)}
    vocab_size = corpus.tokenizer.vocab_size
    among = np.concatenate(
        [
            candidate_bigrams(batch.inputs, batch.labels, vocab_size, batch.seq_idx)
            for batch in tokens.values()
        ]
    )
    counts = _counts(corpus, np.unique(among), task.source.cache)
    most = task.max_train_count
    if most is None:
        batch = tokens["test"]  # the slice is defined by the tokens alone: no model is chosen by it
        most = max_train_count_for(task.ar_share, batch.inputs, batch.labels, counts, seq_idx=batch.seq_idx)
    return Recalled(counts, most)


def _counts(corpus: TokenCorpus, among: np.ndarray, cache: str | None) -> BigramCounts:
    """Count bigrams of the training tokens, or read what an earlier process has counted of a large corpus."""
    vocab_size, stream = corpus.tokenizer.vocab_size, corpus.train.tokens
    if cache is None:
        return BigramCounts.count([stream], vocab_size, among=among)
    key = f"{corpus.sha256} {corpus.tokenizer.identity} {len(stream)}".encode() + among.tobytes()
    path = Path(cache) / f"bigrams-{hashlib.sha256(key).hexdigest()[:24]}.npy"
    if path.exists():
        return BigramCounts(vocab_size, len(stream), among, open_array(path), complete=False)
    counts = BigramCounts.count([stream], vocab_size, among=among)
    with replacing(path) as file:
        np.save(file, counts.counts)
    return counts


def _together(data: Dataset[_Example]) -> TokenBatch:
    """All of some sequences in one batch."""
    return collate([data[index] for index in range(len(data))])  # type: ignore[arg-type]


def collate(examples: list[_Example]) -> TokenBatch:
    """Make a batch; padding that no sequence of it needs is cut off."""
    inputs, labels, *rest = (torch.stack(column) for column in zip(*examples, strict=True))
    if not rest:
        return TokenBatch(inputs, labels, [])
    seq_idx = rest[0]
    longest = int((seq_idx >= 0).any(0).sum())
    used = min(-(-longest // _WIDTH_STEP) * _WIDTH_STEP, inputs.shape[1])
    return TokenBatch(inputs[:, :used], labels[:, :used], [], seq_idx[:, :used])
