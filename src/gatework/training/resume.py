"""Checkpoints from which training goes on bit by bit as if it had never stopped.

There is one place where a training may go on: right after an optimizer step, before the validation that may
be due. Lightning would restore the counters of its loops, and does so differently in each of the places where
a checkpoint can fall; here its loops start anew, told how many steps lie behind them, and the data go on with
the batch that is next (:class:`gatework.data.loader.ResumableLoader`).
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from gatework.checkpoints import CheckpointError
from gatework.files import replacing, take_name, temporary_beside
from gatework.signals import StopSignals
from gatework.tasks.module import TaskModule
from gatework.tasks.task import Quality
from gatework.training.processes import gather, largest
from gatework.training.random_state import random_state, seed_everything, set_random_state

LAST, BEST = "last.ckpt", "best.ckpt"


class InterruptedTrainingError(RuntimeError):
    """Training was told to stop, and has stopped where it can go on later.

    Attributes:
        signum: The signal that told it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class ExactResume(Checkpoint):
    """Write ``last.ckpt`` and ``best.ckpt``, go on from one, and stop after a step when told to.

    Lightning calls it after all other callbacks, so what it writes holds their state after the step.

    Args:
        directory: Where the checkpoints are; it exists.
        steps: Steps of the whole training.
        save_every: Steps between checkpoints; one is also written before every validation.
        validate_every: Steps between validations.
        seed: Seed of the training.
        quality: Which of two qualities is better.
        signals: Whether it is time to stop.

    Attributes:
        best: Step and validation quality of ``best.ckpt``.
        validated: The last step that was validated.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps: int,
        save_every: int,
        validate_every: int,
        seed: int,
        quality: Quality,
        signals: StopSignals,
    ) -> None:
        self.directory = directory
        self.steps, self.save_every, self.validate_every = steps, save_every, validate_every
        self.seed, self.quality, self.signals = seed, quality, signals
        self.best: dict[str, Any] | None = None
        self.validated = 0
        self._step = 0
        self._saved_for_validation = 0
        self._resumed: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint, which does not change with the options."""
        return "ExactResume"

    def state_dict(self) -> dict[str, Any]:
        """Return what the callback remembers."""
        return {"best": self.best, "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember it again."""
        self.best, self.validated = state_dict["best"], state_dict["validated"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the random states of all processes, and take out the counters of Lightning's loops."""
        del checkpoint["loops"]
        checkpoint["gatework"] = {
            "step": trainer.global_step,
            "validation_due": self._saved_for_validation == trainer.global_step,
            "random_states": gather(trainer, random_state()),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what training goes on with.

        Raises:
            CheckpointError: If another number of processes wrote it.
        """
        self._resumed = checkpoint["gatework"]
        written_by = len(self._resumed["random_states"])
        if written_by != trainer.world_size:
            raise CheckpointError(
                f"checkpoint was written by {written_by} processes, and cannot be resumed by "
                f"{trainer.world_size}: set trainer.devices={written_by}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on: counters, random states, and the validation that was due."""
        self.signals.listen()  # Lightning has just taken SIGTERM
        if self._resumed is None:
            if trainer.world_size > 1:  # the same weights, but another dropout in each process
                seed_everything(self.seed, trainer.global_rank)
            return
        self._step = self._resumed["step"]
        _set_counters(trainer, self._step)
        set_random_state(self._resumed["random_states"][trainer.global_rank])
        if self._resumed["validation_due"]:
            self._saved_for_validation = self._step
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        self._resumed = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: save if it is time, stop if told to.

        Raises:
            InterruptedTrainingError: If told to stop.
        """
        step = trainer.global_step
        if step == self._step:  # gradients are still being gathered
            return
        self._step = step
        stop = self._told_to_stop(trainer)
        due = step % self.validate_every == 0 or step == self.steps
        if due or stop or step % self.save_every == 0:
            self._save(trainer, validation_due=due)
        if stop:
            raise InterruptedTrainingError(stop)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before a validation that nobody planned: a callback ends the training."""
        if trainer.state.fn == TrainerFn.FITTING and self._saved_for_validation != trainer.global_step:
            self._save(trainer, validation_due=True)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop at once if told to: what came before the evaluation is saved.

        Raises:
            InterruptedTrainingError: If told to stop.
        """
        if stop := self._told_to_stop(trainer):
            raise InterruptedTrainingError(stop)

    on_test_batch_start = on_validation_batch_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the checkpoint of the best validation."""
        assert isinstance(pl_module, TaskModule)
        self.validated = trainer.global_step
        quality = pl_module.quality()
        if math.isfinite(quality) and (self.best is None or self._is_better(quality, self.best["quality"])):
            self.best = {"step": trainer.global_step, "quality": quality}
            if trainer.is_global_zero:
                _copy(self.directory / LAST, self.directory / BEST)

    def _is_better(self, quality: float, other: float) -> bool:
        return quality > other if self.quality.better == "higher" else quality < other

    def _save(self, trainer: Trainer, *, validation_due: bool) -> None:
        self._saved_for_validation = trainer.global_step if validation_due else 0
        trainer.save_checkpoint(self.directory / LAST, weights_only=False)

    def _told_to_stop(self, trainer: Trainer) -> int:
        """Return the signal that any process got: all must stop after the same step."""
        return largest(trainer, self.signals.received or 0)


def _set_counters(trainer: Trainer, step: int) -> None:
    """Tell Lightning's loops, which have just begun, what lies behind them."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    for counter, count in (
        (loop.batch_progress.total, batches),
        (loop.automatic_optimization.optim_progress.optimizer.step.total, step),
    ):
        for name in vars(counter):
            setattr(counter, name, count)
    loop._batches_that_stepped = step  # what loggers call the step


def _copy(source: Path, target: Path) -> None:
    """Give a file a second name; ``source`` is only ever replaced, never written to."""
    temporary = temporary_beside(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        os.link(source, temporary)
        take_name(temporary, target)
    except OSError:  # a file system without links
        with replacing(target) as file, open(source, "rb") as original:
            while chunk := original.read(2**24):
                file.write(chunk)
