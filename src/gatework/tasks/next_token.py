"""The training that recall and text share: cross-entropy where there is a label, AdamW, a cosine schedule."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.task import Training

#: How many parameters an error message names.
_MOST_NAMES = 3


class DivergedError(RuntimeError):
    """The loss or the gradient stopped being finite; the update that would have followed was not made."""


class NextTokenModule(LightningModule):
    """Train a causal language model to give the labelled tokens.

    Each validation or test pass ends with ``summary``: the mean ``loss`` in nats per label, ``accuracy``
    (mean over sequences of the share of labels that the model's first choice hits, as Zoology measures it),
    the same by slice, in ``slices``, and in ``measures`` whatever else a task counts.

    Attributes:
        slice_measure: What ``slices`` holds: ``"accuracy"`` or ``"loss"``.

    Args:
        model: The model.
        training: Optimizer and schedule.
        learning_rate: Peak learning rate.
    """

    model: GateworkForCausalLM
    slice_measure: ClassVar[Literal["accuracy", "loss"]] = "accuracy"

    def __init__(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> None:
        super().__init__()
        self.model = model
        self.training_options = training
        self.learning_rate = learning_rate
        # In training with several processes each evaluates everything, so there is nothing to gather.
        self.mean_loss = MeanMetric(sync_on_compute=False)
        self.mean_accuracy = MeanMetric(sync_on_compute=False)
        self.slice_accuracy: dict[str, MeanMetric] = {}
        self.summary: dict[str, Any] = {}

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss.

        Raises:
            DivergedError: If it is not finite, in this process or in one that trains with it.
        """
        loss: Tensor = self.model(batch.inputs, shift_labels=batch.labels, **_documents(batch)).loss
        self._check_loss(loss.detach())
        return loss

    def _check_loss(self, loss: Tensor) -> None:
        """Stop all processes together: one that stopped alone would leave the others waiting for it."""
        losses = [loss.item()]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered = [torch.zeros_like(loss) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(gathered, loss)
            losses = [other.item() for other in gathered]
        for rank, value in enumerate(losses):
            if not math.isfinite(value):
                where = f" in process {rank}" if len(losses) > 1 else ""
                raise DivergedError(f"loss is {value} at step {self.global_step + 1}{where}")

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient, and stop before an update that is not finite.

        Raises:
            DivergedError: If the norm is not finite; the message names the first parameters at fault.
        """
        largest = self.training_options.gradient_clip
        clip_sharded = getattr(getattr(self._trainer, "model", None), "clip_grad_norm_", None)
        if clip_sharded is not None:  # FSDP: no process holds the whole gradient
            norm = clip_sharded(largest)
        else:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            step = self.global_step + 1
            raise DivergedError(f"gradient norm is {norm.item()} at step {step}{self._at_fault()}")
        if clip_sharded is None:
            nn.utils.clip_grads_with_norm_(self.parameters(), largest, norm)

    def _at_fault(self) -> str:
        names = [
            name
            for name, parameter in self.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        if not names:
            return ": each element is finite, but their squares overflow"
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        return f", from {', '.join(names[:_MOST_NAMES])}{more}"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, with a linear rise and a cosine fall of the learning rate, per step."""
        options = self.training_options
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if options.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                trained, self.learning_rate, momentum=0.9, weight_decay=options.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(
                trained, self.learning_rate, betas=(0.9, options.beta2), weight_decay=options.weight_decay
            )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, options))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Score one batch."""
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

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Score one batch, as validation does."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Gather ``summary`` and start anew."""
        self._summarise()

    def on_test_epoch_end(self) -> None:
        """Gather ``summary`` and start anew."""
        self._summarise()

    def _summarise(self) -> None:
        self.summary = {
            "loss": self.mean_loss.compute().item(),
            "accuracy": self.mean_accuracy.compute().item(),
            "slices": {name: metric.compute().item() for name, metric in self.slice_accuracy.items()},
            "measures": {},
            **self._summarise_labels(),
        }
        for metric in (self.mean_loss, self.mean_accuracy, *self.slice_accuracy.values()):
            metric.reset()
        if self._trainer is not None:  # for callbacks that stop or choose by validation_quality
            stage = "test" if self.trainer.testing else "validation"
            values = {f"{stage}_loss": self.summary["loss"], f"{stage}_quality": self.quality()}
            self.log_dict(values, logger=False)

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


def rate_factor(step: int, training: Training) -> float:
    """Learning rate at ``step`` over its peak: a linear rise, then half a cosine down to ``final_rate``."""
    warmup = training.warmup * training.steps
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    progress = min(1.0, (step - warmup) / max(1.0, training.steps - warmup))
    return training.final_rate + (1 - training.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
