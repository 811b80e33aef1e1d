"""What every training of a task shares: optimizer, schedule, clipping, and a stop before numbers go bad."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from gatework.checks import named_in
from gatework.tasks.task import Task, Training

#: How many parameters an error message names.
_MOST_NAMES = 3


class DivergedError(RuntimeError):
    """The loss or the gradient stopped being finite; the update that would have followed was not made."""


class TaskModule(LightningModule):
    """Train one model on one task.

    A task's own module says what the :meth:`loss` of a training batch is, adds up the scores of validation
    and test batches in :meth:`score`, and gives them in :meth:`summarise`. Each validation or test pass ends
    with ``summary``: the mean ``loss``, the headline ``quality``, the same by slice of the data in
    ``slices``, and in ``measures`` whatever other numbers the task counts.

    Attributes:
        slice_measure: What ``slices`` holds.
        loss_unit: Unit of the loss, such as ``"nats"``.
        checks_loss: Whether a training step stops at a loss that is not finite; not while a cost is counted.

    Args:
        model: The model.
        training: Optimizer and schedule.
        learning_rate: Peak learning rate.
    """

    model: nn.Module
    slice_measure: ClassVar[str] = "quality"
    loss_unit: ClassVar[str] = ""

    def __init__(self, model: nn.Module, training: Training, learning_rate: float) -> None:
        super().__init__()
        self.model = model
        self.training_options = training
        self.learning_rate = learning_rate
        self.summary: dict[str, Any] = {}
        self.checks_loss = True

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a training batch, a scalar."""
        raise NotImplementedError

    def score(self, batch: Any) -> None:
        """Add the scores of a validation or test batch to what is summed up so far."""
        raise NotImplementedError

    def summarise(self) -> dict[str, Any]:
        """Return the scores that :meth:`score` has added up, and start anew.

        Returns:
            ``loss`` and ``quality``, and if there are such ``slices`` and ``measures``.
        """
        raise NotImplementedError

    def predictions(self, batch: Any) -> list[dict[str, Any]]:
        """Return what ``gatework predict`` writes of each example of a batch: one JSON object each.

        Raises:
            TypeError: If the task has none.
        """
        raise TypeError(f"{type(self).__name__} has no predictions: give it that method")

    def quality(self) -> float:
        """Return the task's headline number of the last validation or test pass."""
        value: float = self.summary["quality"]
        return value

    def sharded_blocks(self) -> Collection[type[nn.Module]]:
        """Return the classes of the blocks that FSDP keeps whole: here those that Transformers would."""
        names = set(getattr(self.model, "_no_split_modules", None) or ())
        return {type(part) for part in self.model.modules() if type(part).__name__ in names}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss.

        Raises:
            DivergedError: If it is not finite, in this process or in one that trains with it.
        """
        loss = self.loss(batch)
        if self.checks_loss:
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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch, as validation does."""
        self.score(batch)

    def on_validation_epoch_end(self) -> None:
        """Gather ``summary`` and start anew."""
        self._end_pass()

    def on_test_epoch_end(self) -> None:
        """Gather ``summary`` and start anew."""
        self._end_pass()

    def _end_pass(self) -> None:
        self.summary = {"slices": {}, "measures": {}, **self.summarise()}
        if self._trainer is not None:  # for callbacks that stop or choose by validation_quality
            stage = "test" if self.trainer.testing else "validation"
            values = {f"{stage}_loss": self.summary["loss"], f"{stage}_quality": self.quality()}
            self.log_dict(values, logger=False)


def make_module(task: Task, model: nn.Module, training: Training, learning_rate: float) -> TaskModule:
    """Return the module with which a task trains a model.

    Raises:
        TypeError: If what the task returns is no :class:`TaskModule`, or one that lacks a part.
    """
    module: Any = task.module(model, training, learning_rate)
    if not isinstance(module, TaskModule):
        raise TypeError(
            f"module of {type(task).__name__} must return a gatework.tasks.module.TaskModule, "
            f"got {type(module).__name__}"
        )
    kind = type(module)
    for part, whole in (("loss", "training_step"), ("score", "validation_step"), ("summarise", "_end_pass")):
        if all(getattr(kind, name) is getattr(TaskModule, name) for name in (part, whole)):
            raise TypeError(f"{kind.__name__}, the module of {type(task).__name__}, lacks {part}")
    return module


def check_model(
    task: Task,
    options: Mapping[str, Any],
    training: Training,
    learning_rate: float,
    *,
    named: Collection[str] | None = None,
) -> None:
    """Build what would be trained, without memory for its weights, and refuse what cannot be built.

    Args:
        task: What it is trained for.
        options: Those of the model.
        training: Optimizer and schedule.
        learning_rate: Peak learning rate.
        named: The options that the caller knows as ``model.NAME``; all of them by default.

    Raises:
        TypeError: If there is no such option, or a value has another type.
        ValueError: If a value is impossible, in the words of whatever refuses it.
    """
    try:
        with torch.device("meta"), named_in("model", options if named is None else named):
            model = task.build_model(options)
        with contextlib.suppress(RuntimeError):  # of a module that looks at weights, which are not there
            make_module(task, model, training, learning_rate)
    except (TypeError, ValueError):
        raise
    except Exception as error:  # models come from any library, which refuses by any kind of error
        raise ValueError(f"{type(error).__name__}: {error}") from error


def rate_factor(step: int, training: Training) -> float:
    """Learning rate at ``step`` over its peak: a linear rise, then half a cosine down to ``final_rate``."""
    warmup = training.warmup * training.steps
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    progress = min(1.0, (step - warmup) / max(1.0, training.steps - warmup))
    return training.final_rate + (1 - training.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
