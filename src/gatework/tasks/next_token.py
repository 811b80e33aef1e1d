"""The training that recall and text share: cross-entropy where there is a label."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric

from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.module import DivergedError, TaskModule, rate_factor
from gatework.tasks.task import Training

__all__ = ["DivergedError", "NextTokenModule", "rate_factor"]


class NextTokenModule(TaskModule):
    """Train a causal language model to give the labelled tokens.

    ``summary`` holds the mean ``loss`` in nats per label, ``accuracy`` (mean over sequences of the share of
    labels that the model's first choice hits, as Zoology measures it), the same by slice, in ``slices``, and
    in ``measures`` whatever else a task counts.

    Attributes:
        slice_measure: What ``slices`` holds: ``"accuracy"`` or ``"loss"``.

    Args:
        model: The model.
        training: Optimizer and schedule.
        learning_rate: Peak learning rate.
    """

    model: GateworkForCausalLM
    slice_measure: ClassVar[Literal["accuracy", "loss"]] = "accuracy"
    loss_unit = "nats"

    def __init__(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> None:
        super().__init__(model, training, learning_rate)
        # In training with several processes each evaluates everything, so there is nothing to gather.
        self.mean_loss = MeanMetric(sync_on_compute=False)
        self.mean_accuracy = MeanMetric(sync_on_compute=False)
        self.slice_accuracy: dict[str, MeanMetric] = {}

    def loss(self, batch: TokenBatch) -> Tensor:
        """Return the mean cross-entropy of the labels, with what mixers add to it."""
        loss: Tensor = self.model(batch.inputs, shift_labels=batch.labels, **_documents(batch)).loss
        return loss

    def score(self, batch: TokenBatch) -> None:
        """Add up loss and hits of one batch."""
        labelled = batch.labels != -100
        logits, labels = self.model.labelled_logits(batch.inputs, batch.labels, **_documents(batch))
        if labels.numel() == 0:
            return
        self.mean_loss.update(F.cross_entropy(logits.float(), labels), labels.numel())
        hits = torch.zeros_like(batch.labels, dtype=torch.float32)
        hits[labelled] = (logits.argmax(-1) == labels).float()
        per_sequence = hits.sum(1) / labelled.sum(1).clamp_min(1)
        self.mean_accuracy.update(per_sequence)
        for names, rows in _rows_by_slices(batch.slices):
            for key, value in names.items():
                metric = self.slice_accuracy.setdefault(
                    f"{key}={value}", MeanMetric(sync_on_compute=False).to(self.device)
                )
                metric.update(per_sequence[rows])
        self._score_labels(batch, logits, labels)

    def _score_labels(self, batch: TokenBatch, logits: Tensor, labels: Tensor) -> None:
        """Add up more of a batch that was scored; tasks that count more override it."""

    def _summarise_labels(self) -> dict[str, Any]:
        """Return what :meth:`_score_labels` has added up, for ``summary``, and start anew."""
        return {}

    def summarise(self) -> dict[str, Any]:
        """Return what was added up, and start anew."""
        found = {
            "loss": self.mean_loss.compute().item(),
            "accuracy": self.mean_accuracy.compute().item(),
            "slices": {name: metric.compute().item() for name, metric in self.slice_accuracy.items()},
            **self._summarise_labels(),
        }
        for metric in (self.mean_loss, self.mean_accuracy, *self.slice_accuracy.values()):
            metric.reset()
        return found

    def predictions(self, batch: TokenBatch) -> list[dict[str, Any]]:
        """Return what ``gatework predict`` writes for each sequence: labels, first choices, and their hits.

        ``labels`` and ``predictions`` have one entry per labelled position, listed in ``positions``.
        """
        logits, _ = self.model.labelled_logits(batch.inputs, batch.labels)
        labelled = batch.labels != -100
        chosen = torch.full_like(batch.labels, -100)
        chosen[labelled] = logits.argmax(-1)
        rows = []
        for row, (inputs, labels) in enumerate(zip(batch.inputs, batch.labels, strict=True)):
            positions = labelled[row].nonzero().flatten()
            hits = (labels == chosen[row])[positions]
            values: dict[str, Any] = {
                "inputs": inputs.tolist(),
                "positions": positions.tolist(),
                "labels": labels[positions].tolist(),
                "predictions": chosen[row][positions].tolist(),
                "hits": hits.tolist(),
                "accuracy": hits.float().mean().item() if len(hits) else None,
            }
            rows.append(values | ({"slices": batch.slices[row]} if batch.slices else {}))
        return rows

    def quality(self) -> float:
        """Return the task's headline number of the last validation or test pass."""
        value: float = self.summary["accuracy"]
        return value


def _documents(batch: TokenBatch) -> dict[str, Tensor]:
    """What the model has to know of documents that share a row; nothing where none do."""
    return {} if batch.seq_idx is None else {"seq_idx": batch.seq_idx}


def _rows_by_slices(slices: list[dict[str, int]]) -> list[tuple[dict[str, int], list[int]]]:
    """Group the rows that have the same slices: one update each instead of one per row."""
    groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for row, names in enumerate(slices):
        groups.setdefault(tuple(names.items()), []).append(row)
    return [(dict(names), rows) for names, rows in groups.items()]
