"""The record of a training: ``metrics.csv`` and whatever loggers there are."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from gatework.files import write_atomically
from gatework.tasks.module import TaskModule
from gatework.tasks.task import Task
from gatework.training.processes import gather

#: What rows hold beside the work so far, whose column has the name of its unit: ``tokens``, ``images``.
_COLUMNS = ("step", "split", "loss", "quality", "learning_rate")


class MetricsLog(Callback):
    """Write a row every ``log_every`` steps, with the mean training loss since the last, and per validation.

    After an interruption the rows of steps that are taken again are dropped, so that the file becomes that of
    a training without one; it holds no times for the same reason.

    Args:
        path: The CSV file.
        task: Counts the work.
        steps: Steps of the whole training.
        log_every: Steps between rows of the training loss.

    Attributes:
        work: Units of work by all processes, such as tokens.
        row: The last row, of each split.
    """

    def __init__(self, path: Path, task: Task, *, steps: int, log_every: int) -> None:
        self.path, self.task, self.steps, self.log_every = path, task, steps, log_every
        self.unit = task.declaration.unit.plural
        self.columns = (_COLUMNS[0], self.unit, *_COLUMNS[1:])
        self.work = 0
        self.row: dict[str, dict[str, Any]] = {}
        self._loss, self._batches = 0.0, 0
        self._step, self._rate = 0, 0.0
        self._resumed: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint, which does not change with the options."""
        return "MetricsLog"

    def state_dict(self) -> dict[str, Any]:
        """Return what enters the next rows."""
        return {self.unit: self.work}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.work = state_dict[self.unit]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the losses of every process, and bring the rows to the disk before the checkpoint."""
        checkpoint["losses"] = gather(trainer, (self._loss, self._batches))
        if trainer.is_global_zero:
            with open(self.path, "r+b") as file:  # Windows brings to the disk only what may be written
                os.fsync(file.fileno())

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See where training goes on."""
        self._resumed = checkpoint["gatework"]
        self._loss, self._batches = checkpoint["losses"][trainer.global_rank]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file, or drop from it what comes again."""
        rows: list[dict[str, str]] = []
        if self._resumed is not None:
            self._step = self._resumed["step"]
            due = self._resumed["validation_due"]
            rows = [row for row in read_metrics(self.path) if _is_behind(row, self._step, due=due)]
        if trainer.is_global_zero:
            head = dict(zip(self.columns, self.columns, strict=True))
            write_atomically(self.path, self._table([head, *rows]))
        self._resumed = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of the step."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up losses, and write a row if it is time."""
        self._loss += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._batches += 1
        self.work += self.task.work(batch) * trainer.world_size
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.log_every == 0 or self._step == self.steps:
            loss = self._mean_loss(trainer)
            self._write(trainer, {"split": "train", "loss": loss, "learning_rate": self._rate})
            self._loss, self._batches = 0.0, 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a row."""
        assert isinstance(pl_module, TaskModule)
        row = {"split": "validation", "loss": pl_module.summary["loss"], "quality": pl_module.quality()}
        self._write(trainer, row)

    def _mean_loss(self, trainer: Trainer) -> float:
        losses = gather(trainer, self._loss / self._batches)
        return sum(losses) / len(losses)

    def _write(self, trainer: Trainer, row: dict[str, Any]) -> None:
        row = {"step": trainer.global_step, self.unit: self.work, **row}
        self.row[row["split"]] = row
        if not trainer.is_global_zero:
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write(self._table([row]))
        names = {name: row[name] for name in ("loss", "quality", "learning_rate") if name in row}
        for logger in trainer.loggers:
            logger.log_metrics(
                {f"{row['split']}/{name}": value for name, value in names.items()}, row["step"]
            )

    def _table(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of ``metrics.csv``; a killed process may have left a part of one at the end."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    columns, *rows = csv.reader(lines) if lines else [[]]
    return [dict(zip(columns, cells, strict=True)) for cells in rows if len(cells) == len(columns)]


def _is_behind(row: dict[str, str], step: int, *, due: bool) -> bool:
    if not row["step"].isdecimal():
        return False
    return int(row["step"]) < step or (
        int(row["step"]) == step and not (due and row["split"] == "validation")
    )
