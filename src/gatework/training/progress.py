"""What a training shows while it runs: a bar on a terminal, a line per validation elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from gatework.tasks.module import TaskModule


class TrainingProgress(Callback):
    """Show steps, loss, quality and learning rate of the first process on standard error.

    Args:
        steps: Steps of the whole training.
        quality: What the quality is called.
        bar: Whether to draw a bar; by default on a terminal.
    """

    def __init__(self, *, steps: int, quality: str, bar: bool | None = None) -> None:
        self.steps, self.quality = steps, quality
        self.is_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._loss = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the bar where training begins, also when it is resumed."""
        self._shown["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.2e}"
        if self.is_bar and self._bar is None and trainer.is_global_zero:
            self._bar = tqdm(
                total=self.steps, initial=trainer.global_step, desc="fit", unit="step", dynamic_ncols=True
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.set_postfix({"loss": f"{self._loss:.3f}", **self._shown}, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the quality."""
        assert isinstance(pl_module, TaskModule)
        self._shown[self.quality] = f"{pl_module.quality():.4f}"
        if not self.is_bar and trainer.is_global_zero:
            rate = f", learning rate {self._shown['lr']}" if "lr" in self._shown else ""
            print(
                f"step {trainer.global_step:,} of {self.steps:,}: validation loss "
                f"{pl_module.summary['loss']:.4f}, {self.quality} {self._shown[self.quality]}{rate}",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that what is said next has a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
