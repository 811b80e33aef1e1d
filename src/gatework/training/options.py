"""What can be chosen about a training beyond the model and its data; light to import."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from gatework.checks import check_bool, check_choice, check_int, check_probability
from gatework.tasks.task import Training

Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "64-true"]


@dataclass(frozen=True)
class TrainerOptions:
    """Where and in what form training runs.

    Attributes:
        accelerator: Kind of device; "auto" takes the best there is.
        devices: Number of devices, one process each.
        strategy: How several devices work together; "auto" is ddp.
        precision: Of the computation; "mixed" keeps the weights in 32 bits.
        accumulate_grad_batches: Batches per optimizer step and device.
        ema_decay: Average the weights with this decay, and evaluate the average; no average by default.
        checkpoint_every: Steps between checkpoints, which are also written before every validation.
        log_every: Steps between rows of the training loss.
        num_workers: Loader processes per device; the data do not depend on it.
        wandb: Log to Weights & Biases too (the extra "wandb").
        mlflow: Log to MLflow too (the extra "mlflow").
        progress_bar: Show a bar on a terminal; elsewhere there is a line per validation.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is impossible.
    """

    accelerator: Accelerator = "auto"
    devices: int = 1
    strategy: Strategy = "auto"
    precision: Precision = "32-true"
    accumulate_grad_batches: int = 1
    ema_decay: float | None = None
    checkpoint_every: int = 100
    log_every: int = 10
    num_workers: int = 0
    wandb: bool = False
    mlflow: bool = False
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("accelerator", Accelerator), ("strategy", Strategy), ("precision", Precision)):
            check_choice(f"trainer.{name}", getattr(self, name), get_args(choices))
        for name in ("devices", "accumulate_grad_batches", "checkpoint_every", "log_every"):
            check_int(f"trainer.{name}", getattr(self, name), at_least=1)
        check_int("trainer.num_workers", self.num_workers, at_least=0)
        for name in ("wandb", "mlflow", "progress_bar"):
            check_bool(f"trainer.{name}", getattr(self, name))
        if self.ema_decay is not None:
            check_probability("trainer.ema_decay", self.ema_decay)


#: Options of the trainer that change no number: a training may be resumed with others.
CHANGE_NOTHING = frozenset({"num_workers", "progress_bar", "checkpoint_every", "wandb", "mlflow"})


@dataclass(frozen=True)
class FitTraining(Training):
    """How the weights change: optimizer, schedule and length.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per batch; a step has as many batches as devices times accumulated ones.
        weight_decay: The optimizer's decay, on all parameters.
        warmup: Fraction of the steps over which the learning rate rises.
        final_rate: Learning rate at the end over its peak; it falls along a cosine.
        gradient_clip: Largest norm of the gradient.
        beta2: AdamW's second momentum.
        evaluations: Validations, one more if they do not divide the steps.
        optimizer: "adamw", or "sgd" with momentum 0.9.
        epochs: Passes over the training data instead of a number of steps.

    Raises:
        ValueError: If a value is out of range.
    """

    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None:
            check_int("training.epochs", self.epochs, at_least=1)

    def resolved(self, batches_per_epoch: int | None, batches_per_step: int) -> Training:
        """Return the training with its steps counted.

        Args:
            batches_per_epoch: Batches in a pass over the data; None if the data have no end.
            batches_per_step: Batches that all devices together read for a step.

        Raises:
            ValueError: If ``epochs`` is set and there are none, or too few data for one step.
        """
        options = {field.name: getattr(self, field.name) for field in fields(Training)}
        if self.epochs is None:
            return Training(**options)
        if batches_per_epoch is None:
            raise ValueError("training.epochs needs data that end; this task draws without end: set steps")
        steps = self.epochs * batches_per_epoch // batches_per_step
        if steps == 0:
            raise ValueError(
                f"training.epochs={self.epochs} of {batches_per_epoch} batches are less than one step of "
                f"{batches_per_step} batches"
            )
        options |= {"steps": steps, "evaluations": min(self.evaluations, steps)}
        return Training(**options)


def single_process(options: TrainerOptions) -> TrainerOptions:
    """Return ``options`` for an evaluation: one device, no average, no logs."""
    return replace(
        options,
        devices=1,
        strategy="auto",
        accumulate_grad_batches=1,
        ema_decay=None,
        wandb=False,
        mlflow=False,
    )


def option_names(kind: type[TrainerOptions] | type[FitTraining]) -> Collection[str]:
    """Return the names of the options of ``kind``."""
    return [field.name for field in fields(kind)]
