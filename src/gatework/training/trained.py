"""What comes of a recipe: its task and model, weights from anywhere, scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from lightning import Callback
from torch import nn

from gatework.checkpoints import CheckpointError, load_checkpoint
from gatework.tasks import create_task
from gatework.tasks.module import TaskModule, make_module
from gatework.tasks.task import Prediction, Task, Training
from gatework.training.options import TrainerOptions, single_process
from gatework.training.recipe import Recipe
from gatework.training.trainer import device_of, make_trainer, quiet

MODEL, WEIGHTS = "model", "model.safetensors"


def make_task(recipe: Recipe) -> Task:
    """Make the task of a recipe.

    Raises:
        ValueError: If there is no such task, or its setting is impossible.
        TypeError: If the setting has an unknown option.
    """
    return create_task(recipe.task, recipe.setting)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a training, ours or the authors', from whatever file holds them.

    A checkpoint of a training with averaged weights gives the averages.

    Raises:
        CheckpointError: If the file cannot be read, or does not fit.
    """
    load_checkpoint(model, path)


def weights_of_run(directory: Path, checkpoint: str | None = None) -> Path:
    """Return the file with the weights of a training.

    Args:
        directory: Of the training.
        checkpoint: ``"last"``, ``"best"``, a path of a file or a folder with weights, or None for the final
            weights, or the last if training has not ended.

    Raises:
        CheckpointError: If there is no such file.
    """
    if checkpoint in ("last", "best"):
        candidates = [directory / "checkpoints" / f"{checkpoint}.ckpt"]
    elif checkpoint is not None:
        candidates = [Path(checkpoint)]
    else:
        candidates = [directory / MODEL / WEIGHTS, directory / "checkpoints" / "last.ckpt"]
    for path in candidates:
        if path.is_file() or (checkpoint is not None and path.is_dir()):
            return path
    raise CheckpointError(f"{candidates[-1]} does not exist; train with `gatework fit` first")


def trained_module(recipe: Recipe, task: Task, weights: Path) -> TaskModule:
    """Return the module of a recipe with weights from a file.

    Raises:
        CheckpointError: If the file cannot be read, or does not fit.
        TypeError: If the model has no such option.
        ValueError: If an option of the model is impossible.
    """
    model = task.build_model(recipe.model)
    load_weights(model, weights)
    return make_module(task, model, Training(), recipe.learning_rate)


def score(
    module: TaskModule,
    batches: Iterable[Any],
    options: TrainerOptions,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Return ``loss``, ``quality``, ``slices`` and what else the task measures of a model on some batches."""
    with quiet():
        trainer = make_trainer(single_process(options), steps=1, validate_every=1, callbacks=callbacks)
        trainer.test(module, batches, verbose=False)
    return {
        "loss": module.summary["loss"],
        "quality": module.quality(),
        "slices": dict(module.summary["slices"]),
        **module.summary["measures"],
    }


def split_batches(task: Task, split: str) -> Iterable[Any]:
    """Return the batches of ``"validation"`` or ``"test"``.

    Raises:
        ValueError: If ``split`` is another word.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"split must be 'validation' or 'test', got {split!r}")
    return task.validation_batches() if split == "validation" else task.test_batches()


def predict(
    recipe: Recipe, module: TaskModule, task: Task, request: Prediction
) -> Iterable[dict[str, Any]] | str:
    """Return what a trained model makes of a split, or of what its task's options ask: rows, or a text."""
    return task.predict(module.to(device_of(recipe.trainer)).eval(), request)


def write_rows(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object per line and return how many."""
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count
