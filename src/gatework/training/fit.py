"""One training from beginning to end, in a directory that says where it stands.

Whatever happens in between, the same call goes on with it, and what it leaves is what a training that was
never interrupted would have left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer

from gatework.checkpoints import CheckpointError, load_checkpoint
from gatework.data.loader import ResumableLoader
from gatework.files import (
    FileError,
    check_directory,
    exclusive,
    remove_leftovers,
    take_name,
    write_atomically,
    write_json,
)
from gatework.signals import StopSignals
from gatework.tasks.module import DivergedError, TaskModule, check_model, make_module
from gatework.tasks.task import Task, Training
from gatework.training.callbacks import check_callbacks, make_callbacks
from gatework.training.checkpoint_io import read_checkpoint
from gatework.training.environment import environment
from gatework.training.metrics import MetricsLog
from gatework.training.progress import TrainingProgress
from gatework.training.random_state import seed_everything
from gatework.training.recipe import Recipe, differences, read_recipe
from gatework.training.resume import LAST, ExactResume, InterruptedTrainingError
from gatework.training.trained import MODEL, make_task, score
from gatework.training.trainer import make_loggers, make_trainer, quiet

RESULT_FORMAT = "gatework.fit/1"
RECIPE, RESULT, METRICS, CHECKPOINTS = "recipe.yaml", "result.json", "metrics.csv", "checkpoints"


def fit(recipe: Recipe, directory: Path, *, plugins: Sequence[str] = (), resume_hint: str = "") -> int:
    """Train, or go on with the training in ``directory``, and evaluate.

    Args:
        recipe: What to train.
        directory: Where it is written to; made if need be. One that holds a training must have been made by
            the same recipe.
        plugins: Modules whose callbacks the recipe may name, imported already.
        resume_hint: The command that goes on with it, for the message after an interruption.

    Returns:
        0 when training has ended, 1 if it diverged, 128 + signal if it was interrupted.

    Raises:
        FileError: If the directory belongs to another recipe or process, or cannot be written.
        CheckpointError: If the checkpoint in it is damaged.
        TypeError: If the recipe has an unknown option.
        ValueError: If a value is impossible.
    """
    check_callbacks(recipe.callbacks, plugins)
    check_directory("output", directory)
    if not _is_first_process():  # the first has checked everything, and says what there is to say
        with contextlib.suppress(DivergedError, InterruptedTrainingError), StopSignals() as signals:
            _Fit(recipe, directory, plugins, signals).train()
        return 0
    if not (directory / RECIPE).is_file():  # whoever wrote one there has checked it
        check_recipe(recipe, plugins)
    with StopSignals() as signals, _claimed(recipe, directory) as is_new:
        if (directory / RESULT).is_file():
            print(
                f"{directory} holds the finished training of this recipe: {directory / RESULT}",
                file=sys.stderr,
            )
            return 0
        try:
            with _freed_if_impossible(directory, is_new=is_new):
                run = _Fit(recipe, directory, plugins, signals)
                run.train()
                run.evaluate()
        except InterruptedTrainingError as stop:
            print(f"{stop} after saving; to resume: {resume_hint}", file=sys.stderr)
            return 128 + stop.signum
        except DivergedError as error:
            last = directory / CHECKPOINTS / LAST
            kept = f"{last} is from before it" if last.is_file() else "no checkpoint had been due"
            print(f"training diverged: {error}; the update was not made, and {kept}", file=sys.stderr)
            return 1
    return 0


@dataclass
class _Session:
    """What one process holds while it trains."""

    module: TaskModule
    trainer: Trainer
    data: _Data
    resume: ExactResume
    metrics: MetricsLog


class _Data(LightningDataModule):
    """The batches that are left, and the validation batches."""

    def __init__(self, train: ResumableLoader[Any], validation: Any, *, first: int, stop: int) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.own: ResumableLoader[Any] | None = None
        self.first, self.stop = first, stop

    def train_dataloader(self) -> _Rest:
        """Return this process's batches."""
        assert self.trainer is not None
        self.close()
        self.own = self.train.configured(rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return _Rest(self.own, self.first, self.stop)

    def val_dataloader(self) -> Any:
        """Return all validation batches, in every process."""
        return self.validation

    def close(self) -> None:
        """End the loader processes."""
        if self.own is not None:
            self.own.close()


class _Rest:
    """Batches ``first .. stop - 1`` of a loader, over all its epochs: to Lightning one epoch.

    At least one: Lightning does not begin a training without data, and the validation after the last step
    may be due.
    """

    def __init__(self, loader: ResumableLoader[Any], first: int, stop: int) -> None:
        self.loader, self.first, self.stop = loader, first, max(stop, first + 1)

    def __iter__(self) -> Iterator[Any]:
        return self.loader.read(self.first, self.stop)

    def __len__(self) -> int:
        return self.stop - self.first


class _Fit:
    """One process's part in a training."""

    def __init__(self, recipe: Recipe, directory: Path, plugins: Sequence[str], signals: StopSignals) -> None:
        self.recipe, self.directory = recipe, directory
        self.signals = signals
        self.callbacks = make_callbacks(recipe.callbacks, plugins)
        self.task = make_task(recipe)
        self.training = _resolve(recipe, self.task)
        self.session: _Session | None = None

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.directory / CHECKPOINTS / LAST

    def train(self) -> None:
        """Take the steps that are left, and the validations that belong to them."""
        with quiet():
            seed_everything(self.recipe.seed)
            torch.manual_seed(self.recipe.seed)
            model = self.task.build_model(self.recipe.model)
            module = make_module(self.task, model, self.training, self.recipe.learning_rate)
            if self.recipe.trainer.precision == "64-true":
                module.double()  # Lightning does so after it has put a checkpoint's weights into 32 bits
            checkpoint = self._checkpoint(module)
            session = self.session = self._session(
                module, 0 if checkpoint is None else checkpoint["gatework"]["step"]
            )
            path = None if checkpoint is None else self.last
            del checkpoint
            try:
                session.trainer.fit(module, datamodule=session.data, ckpt_path=path, weights_only=True)
            finally:
                session.data.close()
            if session.resume.validated < session.trainer.global_step:
                session.trainer.validate(module, session.data, verbose=False)

    def evaluate(self) -> None:
        """Score the final weights, and write them and the result."""
        assert self.session is not None
        session, recipe = self.session, self.recipe
        model = self.task.build_model(recipe.model)
        load_checkpoint(model, self.last)
        module = make_module(self.task, model, self.training, recipe.learning_rate)
        stop = [session.resume]
        scores = {
            "validation": score(module, self.task.validation_batches(), recipe.trainer, stop),
            "test": score(module, self.task.test_batches(), recipe.trainer, stop),
        }
        _save_model(self.task, model, self.directory / MODEL)
        quality = self.task.quality
        result = {
            "format": RESULT_FORMAT,
            "quality": {"name": quality.name, "better": quality.better, "unit": quality.unit},
            "steps": session.trainer.global_step,
            self.task.declaration.unit.plural: session.metrics.work,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "averaged": recipe.trainer.ema_decay is not None,
            **scores,
            "best": session.resume.best,
            "data": self.task.describe(),
            "environment": environment(),
        }
        write_json(self.directory / RESULT, result)
        validation, test = (f"{scores[split]['quality']:.4f}" for split in ("validation", "test"))
        print(
            f"{self.directory}: after {session.trainer.global_step:,} steps {quality.name} {validation} on "
            f"validation and {test} on test data",
            file=sys.stderr,
        )

    def _checkpoint(self, module: TaskModule) -> dict[str, Any] | None:
        """Read the checkpoint to go on from, and see that it fits before anything is changed."""
        if not self.last.is_file():
            return None
        checkpoint = read_checkpoint(self.last)
        own = {name: tensor.shape for name, tensor in module.state_dict().items()}
        if own != {name: getattr(tensor, "shape", None) for name, tensor in checkpoint["state_dict"].items()}:
            raise CheckpointError(f"{self.last} holds another model than the recipe's")
        written_by = len(checkpoint["losses"])
        devices = self.recipe.trainer.devices
        if written_by != devices:
            raise CheckpointError(f"{self.last} was written by {written_by} processes, not {devices}")
        step = checkpoint["gatework"].get("step")
        if not isinstance(step, int) or not 0 <= step <= self.training.steps:
            raise CheckpointError(f"{self.last} is of step {step!r}, and training has {self.training.steps}")
        return checkpoint

    def _session(self, module: TaskModule, step: int) -> _Session:
        recipe, training, options = self.recipe, self.training, self.recipe.trainer
        every = training.steps // training.evaluations
        resume = ExactResume(
            self.directory / CHECKPOINTS,
            steps=training.steps,
            save_every=options.checkpoint_every,
            validate_every=every,
            seed=recipe.seed,
            quality=self.task.quality,
            signals=self.signals,
        )
        metrics = MetricsLog(
            self.directory / METRICS, self.task, steps=training.steps, log_every=options.log_every
        )
        bar = None if options.progress_bar else False
        progress = TrainingProgress(steps=training.steps, quality=self.task.quality.name, bar=bar)
        first_process = _is_first_process()
        trainer = make_trainer(
            options,
            steps=training.steps,
            validate_every=every,
            sharded_blocks=module.sharded_blocks(),
            callbacks=[*self.callbacks, metrics, progress, resume],
            loggers=make_loggers(options, self.directory, first_step=step + 1, name=self.directory.name)
            if first_process
            else (),
        )
        accumulate = options.accumulate_grad_batches
        batches = training.steps * accumulate * trainer.world_size
        loader = self.task.train_batches(training.batch_size, steps=batches, seed=recipe.seed)
        if not isinstance(loader, ResumableLoader):
            raise TypeError(
                f"train_batches of task {recipe.task!r} must return a gatework.data.loader.ResumableLoader, "
                f"from which training can be resumed exactly, got {type(loader).__name__}"
            )
        data = _Data(
            loader.configured(num_workers=options.num_workers),
            self.task.validation_batches(),
            first=step * accumulate,
            stop=training.steps * accumulate,
        )
        return _Session(module, trainer, data, resume, metrics)


@contextlib.contextmanager
def _freed_if_impossible(directory: Path, *, is_new: bool) -> Iterator[None]:
    """Leave nothing of a training that could not begin, which would keep the directory from a better one."""
    try:
        yield
    except (OSError, TypeError, ValueError):
        made = {path.name for path in directory.iterdir() if path.name[0] != "."}
        if is_new and made == {RECIPE, CHECKPOINTS}:
            (directory / RECIPE).unlink()
            (directory / CHECKPOINTS).rmdir()
        raise


def check_recipe(recipe: Recipe, plugins: Sequence[str] = ()) -> None:
    """Refuse a recipe that could not be trained, by making all of it but the weights.

    Args:
        recipe: What to train.
        plugins: Modules whose callbacks the recipe may name, imported already.

    Raises:
        TypeError: If there is no such option, or a value has another type.
        ValueError: If a value is impossible.
    """
    try:
        make_callbacks(recipe.callbacks, plugins)
        task = make_task(recipe)
        check_model(task, recipe.model, _resolve(recipe, task), recipe.learning_rate)
    except (TypeError, ValueError, OSError):
        raise
    except Exception as error:  # tasks come from plugins too, which refuse by any kind of error
        raise ValueError(f"task {recipe.task!r} cannot be made: {type(error).__name__}: {error}") from error


def _resolve(recipe: Recipe, task: Task) -> Training:
    """Count the steps of a training in epochs."""
    per_epoch = None
    if recipe.training.epochs is not None:
        per_epoch = task.batches_per_epoch(recipe.training.batch_size)
    options = recipe.trainer
    return recipe.training.resolved(per_epoch, options.devices * options.accumulate_grad_batches)


@contextlib.contextmanager
def _claimed(recipe: Recipe, directory: Path) -> Iterator[bool]:
    """Hold the directory, with this recipe in it, and say whether it is new there."""
    path = directory / RECIPE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        strangers = (
            [] if path.is_file() else [item.name for item in directory.iterdir() if item.name[0] != "."]
        )
    except OSError as error:
        raise FileError(f"cannot make the directory {directory}: {error.strerror or error}") from error
    if strangers:
        raise FileError(
            f"{directory} holds other files ({', '.join(sorted(strangers)[:3])}) and no {RECIPE}; "
            "choose another --output"
        )
    with exclusive(directory):
        if path.is_file() and (differing := differences(read_recipe(path), recipe)):
            raise FileError(
                f"{directory} holds a training of another recipe ({'; '.join(differing)}); "
                "choose another --output, or repeat its command to resume it"
            )
        remove_leftovers(directory)
        is_new = not path.is_file()
        if is_new:  # before anything else is there: a directory without a recipe is a stranger's
            write_atomically(path, recipe.to_yaml())
        (directory / CHECKPOINTS).mkdir(exist_ok=True)
        remove_leftovers(directory / CHECKPOINTS)
        yield is_new


def _save_model(task: Task, model: Any, directory: Path) -> None:
    """Write the model as its task does, so that ``directory`` holds the old or all of the new."""
    temporary, old = (directory.with_name(f".{directory.name}.{kind}") for kind in ("new", "old"))
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    task.save_model(model, temporary)
    if directory.exists():
        take_name(directory, old)
    take_name(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)


def _is_first_process() -> bool:
    """Whether this process was not started by another of the same training."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
    return all(rank in ("", "0") for rank in ranks)
