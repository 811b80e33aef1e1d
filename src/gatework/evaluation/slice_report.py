"""What a language model scores on AR slices, alone or beside another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatework.data.ar_slices import Slice, SliceScores, gap_share
from gatework.evaluation.slice_options import Packing, Split

REPORT_FORMAT = "gatework.ar-slices/1"
SLICES: tuple[Slice, ...] = ("overall", "ar_hits", "other")


@dataclass(frozen=True, eq=False)
class SliceReport:
    """How a model does on AR hits and elsewhere, and another one on the same tokens.

    Attributes:
        model: Name of the model.
        base: Name of the other one, attention as a rule, or None.
        scores: Losses of the model.
        base_scores: Losses of the other one.
        text: What was scored, in words.
        text_sha256: Digest of that text.
        skipped: Number of documents that were left out of it, by reason.
        split: The part of it.
        tokenizer: What made the tokens, in short words.
        length: Tokens of a context.
        packing: How the text was cut into contexts.
        num_contexts: Number of contexts.
        num_bytes: Bytes of text that the scored tokens stand for.
        max_train_count: A bigram is rare if training shows it at most this often.
        train_text: What was counted, in words.
        num_train_tokens: Number of tokens counted.
    """

    model: str
    base: str | None
    scores: SliceScores
    base_scores: SliceScores | None
    text: str
    text_sha256: str
    skipped: Mapping[str, int]
    split: Split
    tokenizer: str
    length: int
    packing: Packing
    num_contexts: int
    num_bytes: int
    max_train_count: int
    train_text: str
    num_train_tokens: int

    def bits_per_byte(self, scores: SliceScores) -> float:
        """Code length of a byte of the text under a model, in bits."""
        return scores.nats["overall"] / math.log(2) / self.num_bytes

    @property
    def gap(self) -> float | None:
        """What the model loses against the other one, in nats per token; None without another."""
        if self.base_scores is None:
            return None
        return self.scores.loss("overall") - self.base_scores.loss("overall")

    @property
    def ar_share_of_gap(self) -> float | None:
        """Share of that on AR hits, at most 1; None without another model, or if the model loses nothing."""
        return None if self.base_scores is None else gap_share(self.base_scores, self.scores)

    def record(self) -> dict[str, Any]:
        """Return everything as JSON has it; what is not finite, as the loss of an empty slice, as None."""
        models = {"model": self._model_record(self.model, self.scores)}
        if self.base is not None and self.base_scores is not None:
            models["base"] = self._model_record(self.base, self.base_scores)
        return {
            "format": REPORT_FORMAT,
            "text": {
                "name": self.text,
                "sha256": self.text_sha256,
                "split": self.split,
                "skipped": dict(self.skipped),
            },
            "train": {"name": self.train_text, "tokens": self.num_train_tokens},
            "tokenizer": self.tokenizer,
            "length": self.length,
            "packing": self.packing,
            "contexts": self.num_contexts,
            "bytes": self.num_bytes,
            "tokens": self.scores.tokens,
            "max_train_count": self.max_train_count,
            "ar_share": _finite(self.scores.share),
            **models,
            "gap": None if self.gap is None else _finite(self.gap),
            "ar_share_of_gap": self.ar_share_of_gap,
        }

    def _model_record(self, name: str, scores: SliceScores) -> dict[str, Any]:
        return {
            "name": name,
            "loss": {part: _finite(scores.loss(part)) for part in SLICES},
            "perplexity": {part: _finite(scores.perplexity(part)) for part in SLICES},
            "bits_per_byte": _finite(self.bits_per_byte(scores)),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
