"""AR slices of text: which tokens a model could predict by recalling the context, and how well it does there.

A token is an *AR hit* (associative recall) if the bigram of the token before it and itself occurred earlier
in the same context, and is rare in the training text: the context shows what comes next, the weights do
not know it. Everything else is *other*. The share of the gap between two models that lies on AR hits says
how much of it recall explains (Zoology, arXiv:2312.04927, section 3).

Everything is vectorised and works through blocks of rows or pieces of a stream, so that memory follows the
number of different bigrams and not the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gatework.checks import check_int, check_number
from gatework.data.bigram_counts import BigramCounts as BigramCounts
from gatework.data.bigram_counts import check_tokens
from gatework.data.segment import IGNORED

#: The published threshold, and the number of training tokens that it was counted over.
PUBLISHED_MAX_TRAIN_COUNT, PUBLISHED_TRAIN_TOKENS = 1250, 10**10

Slice = Literal["overall", "ar_hits", "other"]

# Positions that are sliced at a time.
_BLOCK = 2**17


def default_max_train_count(num_train_tokens: int) -> int:
    """Scale the published threshold, 1250 in 10 billion training tokens, to another number of them.

    Below 4 million it is 0: only bigrams that training never showed are AR hits.

    Raises:
        TypeError: If ``num_train_tokens`` is not an integer.
        ValueError: If it is negative.
    """
    check_int("num_train_tokens", num_train_tokens, at_least=0)
    return round(Fraction(PUBLISHED_MAX_TRAIN_COUNT * num_train_tokens, PUBLISHED_TRAIN_TOKENS))


def candidate_bigrams(
    inputs: Int64[Tensor, "rows length"],
    labels: Int64[Tensor, "rows length"],
    vocab_size: int,
    seq_idx: Int64[Tensor, "rows length"] | None = None,
) -> Int64[np.ndarray, " keys"]:
    """Find the bigrams that a context repeats: only their training counts decide what is an AR hit.

    Returns:
        ``first * vocab_size + second`` of each, ascending, for :meth:`BigramCounts.count`.

    Raises:
        ValueError: If shapes differ or a token is not in the vocabulary.
    """
    check_int("vocab_size", vocab_size, at_least=1)
    found = [np.empty(0, np.int64)]
    found += [np.unique(block.keys[block.repeated]) for block in _blocks(inputs, labels, seq_idx, vocab_size)]
    return np.unique(np.concatenate(found))


def recalled_bigrams(
    inputs: Int64[Tensor, "rows length"],
    labels: Int64[Tensor, "rows length"],
    counts: BigramCounts,
    *,
    max_train_count: int,
    seq_idx: Int64[Tensor, "rows length"] | None = None,
) -> Bool[Tensor, "rows length"]:
    """Find the AR hits among labels: the bigram (input, label) came earlier in its context and is rare.

    A position without a label (-100) is no hit, but what it shows belongs to the context: its bigram is
    made with the next input.

    Args:
        inputs: Token ids.
        labels: The token that comes next, -100 where none is asked for.
        counts: Bigrams of the training text.
        max_train_count: A bigram is rare if training showed it at most this often.
        seq_idx: Number of the document of each position; a new context begins wherever it changes along a
            row. Without it a row is one context.

    Returns:
        True at AR hits, on the device of ``inputs``.

    Raises:
        TypeError: If ``max_train_count`` is not an integer.
        ValueError: If shapes differ, a token is not in the vocabulary of ``counts``, or ``max_train_count``
            is negative.
    """
    check_int("max_train_count", max_train_count, at_least=0)
    hits = [np.empty((0, inputs.shape[-1]), dtype=bool)]
    for block in _blocks(inputs, labels, seq_idx, counts.vocab_size):
        block.repeated[block.repeated] = block.count(counts) <= max_train_count
        hits.append(block.repeated)
    return torch.from_numpy(np.concatenate(hits)).to(inputs.device)


def ar_hits(
    tokens: Int64[Tensor, "rows length"],
    counts: BigramCounts,
    *,
    max_train_count: int,
    seq_idx: Int64[Tensor, "rows length"] | None = None,
) -> Bool[Tensor, "rows length"]:
    """Find the AR hits of whole sequences: True at ``i`` if ``(tokens[i - 1], tokens[i])`` is one.

    Position 0, and the first of each document of ``seq_idx``, have no bigram and are never hits. See
    :func:`recalled_bigrams` for the arguments and errors.
    """
    _check_shapes(tokens=tokens, seq_idx=seq_idx)
    labels, contexts = tokens[:, 1:], None
    if seq_idx is not None:
        # A pair across a border gets a context of its own, so that no document can repeat it.
        contexts = 2 * _contexts(seq_idx)
        border = contexts[:, 1:] != contexts[:, :-1]
        contexts = contexts[:, 1:] - border.long()
        labels = labels.masked_fill(border, IGNORED)
    hits = recalled_bigrams(tokens[:, :-1], labels, counts, max_train_count=max_train_count, seq_idx=contexts)
    return torch.cat([hits.new_zeros(len(tokens), min(1, tokens.shape[1])), hits], dim=1)


def max_train_count_for(
    share: float,
    inputs: Int64[Tensor, "rows length"],
    labels: Int64[Tensor, "rows length"],
    counts: BigramCounts,
    seq_idx: Int64[Tensor, "rows length"] | None = None,
) -> int:
    """Choose the threshold whose share of AR hits among the labels is nearest to ``share``.

    Between two that are equally near, the smaller one is taken.

    Raises:
        TypeError: If ``share`` is not a number.
        ValueError: If it is not in 0 .. 1, no position has a label, or as :func:`recalled_bigrams`.
    """
    check_number("share", share, at_least=0, at_most=1)
    num_labels = int((labels != IGNORED).sum())
    if not num_labels:
        raise ValueError("labels must ask for at least one token, but all are -100")
    seen = [np.zeros(0, np.int64)]
    seen += [block.count(counts) for block in _blocks(inputs, labels, seq_idx, counts.vocab_size)]
    thresholds, hits = np.unique(np.concatenate(seen), return_counts=True)
    if not len(thresholds) or thresholds[0] > 0:
        thresholds, hits = np.append(0, thresholds), np.append(0, hits)
    distance = np.abs(np.cumsum(hits) / num_labels - share)
    return int(thresholds[np.argmin(distance)])


@dataclass(eq=False)
class SliceScores:
    """Losses of one model, summed over all tokens and over each slice.

    Attributes:
        nats: Sum of the negative log-likelihoods by slice, in nats.
        tokens: Number of tokens by slice.
    """

    nats: dict[Slice, float] = field(default_factory=lambda: {"overall": 0.0, "ar_hits": 0.0, "other": 0.0})
    tokens: dict[Slice, int] = field(default_factory=lambda: {"overall": 0, "ar_hits": 0, "other": 0})

    def update(
        self, nll: Float[Tensor, "*shape"], hits: Bool[Tensor, "*shape"], labelled: Bool[Tensor, "*shape"]
    ) -> None:
        """Add some positions.

        Args:
            nll: Negative log-likelihood of each label, in nats; anything where there is none.
            hits: True at AR hits.
            labelled: True where there is a label.

        Raises:
            ValueError: If shapes differ.
        """
        if not nll.shape == hits.shape == labelled.shape:
            raise ValueError(
                f"nll, hits and labelled must have one shape, got {tuple(nll.shape)}, {tuple(hits.shape)} "
                f"and {tuple(labelled.shape)}"
            )
        chosen: dict[Slice, Tensor] = {
            "overall": labelled,
            "ar_hits": labelled & hits,
            "other": labelled & ~hits,
        }
        for name, mask in chosen.items():
            self.nats[name] += float(nll.detach()[mask].double().sum())
            self.tokens[name] += int(mask.sum())

    def loss(self, name: Slice) -> float:
        """Mean negative log-likelihood of a slice, in nats per token; not a number if it is empty."""
        return self.nats[name] / self.tokens[name] if self.tokens[name] else math.nan

    def perplexity(self, name: Slice) -> float:
        """``exp`` of :meth:`loss`; infinite where that is too large for a float."""
        try:
            return math.exp(self.loss(name))
        except OverflowError:
            return math.inf

    @property
    def share(self) -> float:
        """Share of AR hits among all tokens; not a number if there are none."""
        return self.tokens["ar_hits"] / self.tokens["overall"] if self.tokens["overall"] else math.nan


def gap_share(base: SliceScores, model: SliceScores, *, cap: bool = True) -> float | None:
    """Share of the gap between two models that lies on AR hits.

    It is ``(loss_AR(model) - loss_AR(base)) * tokens_AR / ((loss(model) - loss(base)) * tokens)``.

    Args:
        base: Scores of the model with the better recall, attention as a rule.
        model: Scores of the other one on the same tokens.
        cap: Report it as published: at most 1, and ``None`` if ``model`` is no worse than ``base``. Without,
            the bare ratio, ``None`` only if the models are equally good.

    Raises:
        ValueError: If they were not scored on the same slices.
    """
    if base.tokens != model.tokens:
        raise ValueError(
            f"base and model must be scored on the same tokens, got {base.tokens} and {model.tokens}"
        )
    gap = model.nats["overall"] - base.nats["overall"]
    if gap == 0 or not math.isfinite(gap) or (cap and gap < 0):
        return None
    ratio = (model.nats["ar_hits"] - base.nats["ar_hits"]) / gap
    return min(1.0, ratio) if cap else ratio


@dataclass(eq=False)
class _Block:
    """Bigrams of some rows: their keys, and which are labelled and came earlier in their context."""

    keys: Int64[np.ndarray, "rows length"]
    repeated: Bool[np.ndarray, "rows length"]

    def count(self, counts: BigramCounts) -> Int64[np.ndarray, " repeated"]:
        """Training counts of the repeated ones."""
        return counts.of(*np.divmod(self.keys[self.repeated], counts.vocab_size))


def _blocks(inputs: Tensor, labels: Tensor, seq_idx: Tensor | None, vocab_size: int) -> Iterator[_Block]:
    """Go through the rows, as many at a time as bound the memory."""
    _check_shapes(inputs=inputs, labels=labels, seq_idx=seq_idx)
    for rows in _row_blocks(*inputs.shape):
        first, second = inputs[rows].cpu().numpy(), labels[rows].cpu().numpy()
        contexts = None if seq_idx is None else _contexts(seq_idx[rows]).cpu().numpy()
        labelled = second != IGNORED
        check_tokens("inputs", first, vocab_size)
        if labelled.all():
            check_tokens("labels", second, vocab_size)
            keys = first * vocab_size + second
            yield _Block(keys, _seen_before(keys, contexts))
        else:
            check_tokens("labels", second[labelled], vocab_size)
            keys = np.where(labelled, first * vocab_size + second, _shown(first, contexts, vocab_size))
            yield _Block(keys, _seen_before(keys, contexts) & labelled)


def _shown(
    inputs: Int64[np.ndarray, "rows length"],
    contexts: Int64[np.ndarray, "rows length"] | None,
    vocab_size: int,
) -> Int64[np.ndarray, "rows length"]:
    """Keys of each input and the next of its context; -1 where there is none."""
    keys = np.full_like(inputs, -1)
    keys[:, :-1] = inputs[:, :-1] * vocab_size + inputs[:, 1:]
    if contexts is not None:
        keys[:, :-1][contexts[:, 1:] != contexts[:, :-1]] = -1
    return keys


def _seen_before(
    keys: Int64[np.ndarray, "rows length"], contexts: Int64[np.ndarray, "rows length"] | None
) -> Bool[np.ndarray, "rows length"]:
    """True where the key occurred earlier in the row and, where they are given, in the context."""
    rows, length = keys.shape
    flat = keys.ravel()
    context = np.repeat(np.arange(rows), length)
    if contexts is not None:
        context = context * length + contexts.ravel()  # contexts lie one after another
    order = _stable_order(flat)
    before, after = order[:-1], order[1:]
    seen = np.zeros(flat.shape, dtype=bool)
    seen[after] = (flat[before] == flat[after]) & (context[before] == context[after])
    return seen.reshape(keys.shape)


def _stable_order(keys: Int64[np.ndarray, " keys"]) -> Int64[np.ndarray, " keys"]:
    """Sort keys of at least -1, equal ones in the order of their places."""
    bits = len(keys).bit_length()
    if keys.max(initial=0) + 1 >= 2 ** (63 - bits):
        return np.asarray(np.argsort(keys, kind="stable"))
    # One sort of plain numbers, the place in the low bits, is 25 times as fast as a stable sort of places.
    packed = ((keys + 1) << bits) | np.arange(len(keys))
    packed.sort()
    return np.asarray(packed & (2**bits - 1))


def _contexts(seq_idx: Int64[Tensor, "rows length"]) -> Int64[Tensor, "rows length"]:
    """Number the contexts of each row in order: one more wherever ``seq_idx`` changes."""
    changes = torch.zeros_like(seq_idx)
    changes[:, 1:] = (seq_idx[:, 1:] != seq_idx[:, :-1]).long()
    return changes.cumsum(dim=1)


def _row_blocks(rows: int, length: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, length))
    return (slice(start, start + step) for start in range(0, rows, step))


def _check_shapes(**tensors: Tensor | None) -> None:
    (name, first), *others = ((name, t) for name, t in tensors.items() if t is not None)
    if first.ndim != 2:
        raise ValueError(f"{name} must have the shape (rows, length), got {tuple(first.shape)}")
    for other, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(
                f"{other} must have the shape of {name}, {tuple(first.shape)}, got {tuple(tensor.shape)}"
            )
