"""The recall gap on real text: any causal language model of Transformers, scored on AR slices.

What an AR hit is, and the share of a gap that lies on them, is in :mod:`gatework.data.ar_slices`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from tqdm import tqdm
from transformers import PreTrainedModel

from gatework.data.ar_slices import (
    BigramCounts,
    SliceScores,
    candidate_bigrams,
    default_max_train_count,
    max_train_count_for,
    recalled_bigrams,
)
from gatework.data.packing import PaddedRows
from gatework.data.segment import IGNORED
from gatework.data.text import TextWindows, spread_evenly
from gatework.data.tokenizer import TextTokenizer, load_tokenizer
from gatework.data.tokens import STANDARD_LIBRARY, TokenCorpus, load_tokens
from gatework.data.tokens import Split as TextSplit
from gatework.evaluation.causal_model import (
    check_causal,
    context_limit,
    load_causal_model,
    model_place,
    num_embeddings,
    token_losses,
)
from gatework.evaluation.slice_options import SliceOptions, Split
from gatework.evaluation.slice_report import SliceReport

Contexts = Subset[tuple[Tensor, ...]]
Model = str | os.PathLike[str] | PreTrainedModel

# Longest context unless told otherwise.
_LENGTH = 1024
# Numbers in the logits of a batch unless its size is given, and most contexts in it.
_LOGITS, _BATCH = 2**27, 64
# Tokens that are sliced, and counted, at a time; most that a threshold is chosen by.
_SLICED, _COUNTED, _MOST_CHOOSING = 2**20, 2**22, 2**22
# Tokens by which causality is checked.
_CHECKED = 64
# Texts by which tokenizers are told apart.
_SAMPLES = [b"def f(x_1):\n\treturn  x_1 + 10_000  # naive", "naïve café, 1,024 ﬁnal — 東京!".encode()]


def evaluate_ar_slices(
    model: Model,
    text: str | os.PathLike[str] = STANDARD_LIBRARY,
    options: SliceOptions | None = None,
    *,
    base: Model | None = None,
    bar: bool = False,
) -> SliceReport:
    """Score a causal language model on AR hits and on the other tokens of a text.

    Args:
        model: A model, a folder that holds one, the directory of a finished ``gatework fit``, or a name on
            the hub.
        text: A file or folder of text, or ``"stdlib"``, the source of Python's standard library.
        options: What is scored, and how; see :class:`SliceOptions`.
        base: A second model with the same tokenizer, attention as a rule: what ``model`` loses against it is
            shared out to the slices. Both are held in memory.
        bar: Whether to show progress on standard error.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If a model cannot be loaded, is not causal, has no tokenizer or another one than ``base``,
            or gives no finite loss; if the text is empty or too short; or if an option is out of range.
        OSError: If a file cannot be read.
    """
    options = options or SliceOptions()
    models = [_Scored(each, options) for each in (model, base) if each is not None]
    tokenizer = options.tokenizer or _shared_tokenizer(models)
    corpus = _load(text, tokenizer, options)
    length = _length(models, options.length)
    contexts = _contexts(corpus, options.scored_split, length, options)
    first, _ = next(_batches(contexts, 1))
    for each in models:
        each.check(corpus.tokenizer, first[:, :_CHECKED])
    train = corpus if options.train is None else _load_train(tokenizer, options)
    slices = _slice(contexts, corpus, train, length, options, bar=bar)
    size = options.batch_size or max(1, min(_BATCH, _LOGITS // (length * max(each.size for each in models))))
    total = slices.num_tokens * len(models)
    with tqdm(total=total, desc="score", unit="token", unit_scale=True, disable=not bar) as progress:
        scores = [each.score(_batches(contexts, size), slices, progress) for each in models]
    return SliceReport(
        model=models[0].name,
        base=None if base is None else models[1].name,
        scores=scores[0],
        base_scores=None if base is None else scores[1],
        text=corpus.name,
        text_sha256=corpus.sha256,
        skipped=corpus.skipped,
        split=options.scored_split,
        tokenizer=corpus.tokenizer.identity,
        length=length,
        packing=options.packing,
        num_contexts=len(contexts),
        num_bytes=slices.num_bytes,
        max_train_count=slices.max_train_count,
        train_text=f"the train split of {corpus.name}" if train is corpus else train.name,
        num_train_tokens=slices.counts.num_tokens,
    )


def score_slices(
    model: PreTrainedModel,
    batches: Iterable[tuple[Int64[Tensor, "_ _"], Int64[Tensor, "_ _"]]],
    counts: BigramCounts,
    *,
    max_train_count: int,
) -> SliceScores:
    """Score a model on batches of your own; :func:`evaluate_ar_slices` makes them from a text.

    Args:
        model: Any causal language model of Transformers, in evaluation.
        batches: Inputs and labels, ``(rows, length)`` each; every row is a context, padded on the right if
            need be, and a label (the token that comes next) of -100 asks for nothing.
        counts: Bigrams of the training text.
        max_train_count: A bigram is rare if training shows it at most this often.

    Raises:
        ValueError: If a loss is not finite, or a token is not in the vocabulary.
    """
    scores = SliceScores()
    for inputs, labels in batches:
        hits = recalled_bigrams(inputs, labels, counts, max_train_count=max_train_count)
        nll, labelled = token_losses(model, inputs, labels).cpu(), (labels != IGNORED).cpu()
        if not nll[labelled].isfinite().all():
            raise ValueError(
                f"the loss of {int((~nll[labelled].isfinite()).sum())} of the first "
                f"{scores.tokens['overall'] + int(labelled.sum())} tokens is not finite: the model is "
                f"broken, or overflows in {model.dtype}"
            )
        scores.update(nll, hits.cpu(), labelled)
    return scores


class _Scored:
    """One of the models that are compared."""

    def __init__(self, model: Model, options: SliceOptions) -> None:
        if isinstance(model, PreTrainedModel):
            self.model, self.place = model, str(model.config.name_or_path or "")
            self.name = self.place or type(model).__name__
        else:
            self.name, self.place = os.fspath(model), model_place(model)
            self.model = load_causal_model(
                model,
                dtype=options.dtype,
                device=options.device,
                trust_remote_code=options.trust_remote_code,
            )
        self.size = num_embeddings(self.model)

    def tokenizer(self) -> TextTokenizer:
        """Load the tokenizer that lies beside the model."""
        advice = "name one with --tokenizer, 'bytes' for a model of bytes"
        if not self.place:
            raise ValueError(f"model {self.name} was made in this process and has no tokenizer: {advice}")
        try:
            return load_tokenizer(self.place)
        except ValueError as error:
            raise ValueError(
                f"model {self.name!r} comes without a tokenizer that can be used: {advice} ({error})"
            ) from error

    def check(self, tokenizer: TextTokenizer, tokens: Int64[Tensor, "_ _"]) -> None:
        """Refuse a model that cannot be scored on such tokens."""
        with self._blamed():
            if tokenizer.vocab_size > self.size:
                raise ValueError(
                    f"it has embeddings for {self.size} tokens, and the tokenizer ({tokenizer.identity}) has "
                    f"{tokenizer.vocab_size}"
                )
            check_causal(self.model.eval(), tokens)

    def score(
        self, batches: Iterable[tuple[Tensor, Tensor]], slices: _Slices, progress: tqdm[Any]
    ) -> SliceScores:
        """Score it, and show how far it is."""
        with self._blamed():
            return score_slices(
                self.model,
                _watched(batches, progress),
                slices.counts,
                max_train_count=slices.max_train_count,
            )

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say which of the models an error is about."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"model {self.name!r}: {error}") from error


def _watched(
    batches: Iterable[tuple[Tensor, Tensor]], progress: tqdm[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, labels in batches:
        yield inputs, labels
        progress.update(int((labels != IGNORED).sum()))


@dataclass(frozen=True, eq=False)
class _Slices:
    """What decides which tokens are AR hits."""

    counts: BigramCounts
    max_train_count: int
    num_tokens: int
    num_bytes: int


def _slice(
    contexts: Contexts,
    corpus: TokenCorpus,
    train: TokenCorpus,
    length: int,
    options: SliceOptions,
    *,
    bar: bool,
) -> _Slices:
    """Count the bigrams that contexts repeat, and choose the threshold."""
    vocab_size, bytes_of = corpus.tokenizer.vocab_size, corpus.tokenizer.token_bytes()
    keys, num_tokens, num_bytes = [np.zeros(0, np.int64)], 0, 0
    for inputs, labels in _batches(contexts, max(1, _SLICED // length)):
        keys.append(candidate_bigrams(inputs, labels, vocab_size))
        labelled = labels[labels != IGNORED].numpy()
        num_tokens += len(labelled)
        num_bytes += int(bytes_of[labelled].sum())
    chosen = None
    if options.ar_share is not None:
        some = spread_evenly(contexts, max(1, _MOST_CHOOSING // length))
        (chosen,) = _batches(some, len(some))
    splits = [train.train] if train is corpus else [train.train, train.validation, train.test]
    counts = _count([split.tokens for split in splits], vocab_size, np.concatenate(keys), bar=bar)
    if chosen is not None and options.ar_share is not None:
        most = max_train_count_for(options.ar_share, *chosen, counts)
    elif options.max_train_count is not None:
        most = options.max_train_count
    else:
        most = default_max_train_count(counts.num_tokens)
    return _Slices(counts, most, num_tokens, num_bytes)


def _count(
    streams: Sequence[Integer[np.ndarray, " _"]],
    vocab_size: int,
    among: Int64[np.ndarray, " _"],
    *,
    bar: bool,
) -> BigramCounts:
    """Count bigrams of a stream that is given in parts, and show how far it is."""
    total = sum(map(len, streams))
    with tqdm(total=total, desc="count", unit="token", unit_scale=True, disable=not bar) as progress:

        def pieces() -> Iterator[Integer[np.ndarray, " _"]]:
            for stream in streams:
                for start in range(0, len(stream), _COUNTED):
                    piece = stream[start : start + _COUNTED]
                    yield piece
                    progress.update(len(piece))

        return BigramCounts.count(pieces(), vocab_size, among=among)


def _load_train(tokenizer: str, options: SliceOptions) -> TokenCorpus:
    """Turn the text that is counted into tokens."""
    assert options.train is not None
    suffixes = None if options.train == STANDARD_LIBRARY else options.suffixes
    return load_tokens(
        options.train,
        tokenizer=tokenizer,
        suffixes=suffixes,
        max_bytes=options.max_bytes,
        cache=options.cache,
    )


def _load(text: str | os.PathLike[str], tokenizer: str, options: SliceOptions) -> TokenCorpus:
    """Turn a text into tokens."""
    return load_tokens(
        text,
        tokenizer=tokenizer,
        suffixes=options.suffixes,
        max_bytes=options.max_bytes,
        dataset=options.dataset,
        dataset_config=options.dataset_config,
        dataset_split=options.dataset_split,
        text_column=options.text_column,
        cache=options.cache,
    )


def _contexts(corpus: TokenCorpus, split: Split, length: int, options: SliceOptions) -> Contexts:
    """Cut what is scored into contexts, and take some that are spread evenly over it."""
    names: Sequence[TextSplit] = ("train", "validation", "test") if split == "all" else (split,)
    sizes = {name: len(corpus.split(name).tokens) for name in names}
    parts: list[Dataset[tuple[Tensor, ...]]] = []
    if options.packing == "windows":
        parts += [TextWindows(corpus, length, split=name) for name in names if sizes[name] > length]
    else:
        end = corpus.tokenizer.end_id
        parts += [PaddedRows(corpus.split(name), end, length) for name in names if sizes[name] > 0]
    if not parts:
        raise ValueError(
            f"text is too short for one context: {corpus.name} has {max(sizes.values())} tokens in its "
            f"{split} split, and length is {length}; give more text or a smaller length"
        )
    contexts: ConcatDataset[tuple[Tensor, ...]] = ConcatDataset(parts)
    wanted = len(contexts)
    if options.max_tokens is not None:
        wanted = max(1, wanted * options.max_tokens // sum(sizes.values()))
    return spread_evenly(contexts, wanted)


def _batches(contexts: Contexts, size: int) -> Iterator[tuple[Int64[Tensor, "_ _"], Int64[Tensor, "_ _"]]]:
    """Yield inputs and labels of some contexts at a time, without padding that none of them needs."""
    for start in range(0, len(contexts), size):
        rows = [contexts[i] for i in range(start, min(start + size, len(contexts)))]
        inputs, labels = (torch.stack([row[column] for row in rows]) for column in (0, 1))
        longest = int((labels != IGNORED).any(0).sum())
        yield inputs[:, :longest], labels[:, :longest]


def _length(models: Sequence[_Scored], wanted: int | None) -> int:
    """Choose the length of a context, within what all models take."""
    limits = {each.name: context_limit(each.model.config) for each in models}
    if wanted is None:
        trained = [getattr(each.model.config, "context_length", None) or _LENGTH for each in models]
        return min(_LENGTH, *trained, *(limit for limit in limits.values() if limit is not None))
    for name, limit in limits.items():
        if limit is not None and wanted > limit:
            raise ValueError(f"length must be at most {limit}, what model {name!r} takes, got {wanted}")
    return wanted


def _shared_tokenizer(models: Sequence[_Scored]) -> str:
    """Return where the tokenizer of the models lies, and see that it is one."""
    first, *others = models
    own = first.tokenizer()
    for other in others:
        theirs = other.tokenizer()
        if not _are_one(own, theirs):
            raise ValueError(
                f"models {first.name!r} and {other.name!r} have different tokenizers ({own.identity} and "
                f"{theirs.identity}): their losses are per token, and cannot be compared"
            )
    return first.place


def _are_one(first: TextTokenizer, second: TextTokenizer) -> bool:
    """Whether two tokenizers give the same ids; what they are called and how they are stored may differ."""
    if (first.vocab_size, first.end_id) != (second.vocab_size, second.end_id):
        return False
    same_ids = first.pretrained().get_vocab() == second.pretrained().get_vocab()
    pairs = zip(first.encode(_SAMPLES), second.encode(_SAMPLES), strict=True)
    return same_ids and all(np.array_equal(ours, theirs) for ours, theirs in pairs)
