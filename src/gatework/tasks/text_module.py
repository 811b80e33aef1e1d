"""Training on text: bits per byte whatever the tokens, and the loss on recalled bigrams and on the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gatework.data.ar_slices import BigramCounts, SliceScores, recalled_bigrams
from gatework.data.segment import TokenBatch
from gatework.data.tokenizer import TextTokenizer
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Training


@dataclass(frozen=True, eq=False)
class Recalled:
    """What tells AR hits from other tokens: counts of bigrams in training, and the most an AR hit may have.

    Attributes:
        counts: Bigrams of the training tokens.
        max_train_count: Bigrams seen more often are no AR hits.
    """

    counts: BigramCounts
    max_train_count: int

    def hits(self, batch: TokenBatch) -> Tensor:
        """Mark the AR hits among the labels, ``(rows, length)``."""
        return recalled_bigrams(
            batch.inputs,
            batch.labels,
            self.counts,
            max_train_count=self.max_train_count,
            seq_idx=batch.seq_idx,
        )


class TextModule(NextTokenModule):
    """Next-token training whose headline number is the code length of a byte.

    ``summary["slices"]`` holds the loss in nats per token on ``ar_hits`` and on ``other`` tokens, and
    ``summary["measures"]`` the share of AR hits and their ``max_train_count``, where AR hits are told apart.

    Args:
        model: The model.
        training: Optimizer and schedule.
        learning_rate: Peak learning rate.
        tokenizer: What cut the text into tokens.
        recalled: What tells AR hits from other tokens, if they are to be told apart.
    """

    slice_measure = "loss"

    def __init__(
        self,
        model: GateworkForCausalLM,
        training: Training,
        learning_rate: float,
        tokenizer: TextTokenizer,
        recalled: Recalled | None = None,
    ) -> None:
        super().__init__(model, training, learning_rate)
        self.tokenizer = tokenizer
        self.recalled = recalled
        self.token_bytes = torch.from_numpy(tokenizer.token_bytes())
        self.scores = SliceScores()
        self.num_tokens = self.num_bytes = 0

    def quality(self) -> float:
        """Return the mean loss in bits per byte of text."""
        loss, tokens_per_byte = self.summary["loss"], self.summary["tokens_per_byte"]
        return float(loss * tokens_per_byte / math.log(2))

    def predictions(self, batch: TokenBatch) -> list[dict[str, Any]]:
        """Return what ``gatework predict`` writes of each sequence: its text and its bits per byte."""
        logits, labels = self.model.labelled_logits(batch.inputs, batch.labels, seq_idx=batch.seq_idx)
        labelled = batch.labels != -100
        nats = torch.zeros_like(batch.labels, dtype=torch.float64)
        nats[labelled] = F.cross_entropy(logits.float(), labels, reduction="none").double()
        num_bytes = (self.token_bytes.to(labels.device)[batch.labels.clamp_min(0)] * labelled).sum(1)
        bits = nats.sum(1) / math.log(2) / num_bytes
        return [
            {"text": self.tokenizer.decode(inputs[kept].tolist()), "bits_per_byte": value}
            for inputs, kept, value in zip(batch.inputs, labelled, bits.tolist(), strict=True)
        ]

    def _score_labels(self, batch: TokenBatch, logits: Tensor, labels: Tensor) -> None:
        """Count the bytes behind the labels, and add up the loss of each slice."""
        self.num_tokens += labels.numel()
        self.num_bytes += int(self.token_bytes[labels.cpu()].sum())
        if self.recalled is None:
            return
        nats = F.cross_entropy(logits.float(), labels, reduction="none").cpu()
        on_cpu = batch.to("cpu")
        hits = self.recalled.hits(on_cpu)[on_cpu.labels != -100]
        self.scores.update(nats, hits, torch.ones_like(hits))

    def _summarise_labels(self) -> dict[str, Any]:
        """Return what was added up, and start anew."""
        found: dict[str, Any] = {"tokens_per_byte": self.num_tokens / max(1, self.num_bytes)}
        if self.recalled is not None:
            slices = {name: _finite(self.scores.loss(name)) for name in ("ar_hits", "other")}
            measures = {"ar_share": self.scores.share, "max_train_count": self.recalled.max_train_count}
            found |= {"slices": slices, "measures": measures}
        self.scores = SliceScores()
        self.num_tokens = self.num_bytes = 0
        return found


def _finite(value: float) -> float | None:
    """None for the loss of a slice without a token."""
    return value if math.isfinite(value) else None
