"""A Lightning trainer from :class:`~gatework.training.options.TrainerOptions`."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import nn

from gatework.training.checkpoint_io import AtomicCheckpointIO
from gatework.training.options import TrainerOptions

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")


def make_trainer(
    options: TrainerOptions,
    *,
    steps: int,
    validate_every: int,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    sharded_blocks: Collection[type[nn.Module]] = (),
) -> Trainer:
    """Make a trainer whose length is a number of steps, and which is quiet inside :func:`quiet`.

    Validation comes every ``validate_every`` steps. With ``ema_decay`` validation uses the averaged weights,
    and the model has them when training ends. Checkpoints are written whole or not at all.

    Args:
        options: Devices, precision and so on.
        steps: Optimizer steps in all.
        validate_every: Steps between validations.
        callbacks: What else happens.
        loggers: Where Lightning's callbacks log to.
        sharded_blocks: Classes of the blocks that FSDP keeps whole.

    Raises:
        ValueError: If the strategy does not run on the accelerator.
    """
    averages = [] if options.ema_decay is None else [EMAWeightAveraging(decay=options.ema_decay)]
    every = [*averages, *callbacks]
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=_strategy(options, sharded_blocks),
        precision=options.precision,
        accumulate_grad_batches=options.accumulate_grad_batches,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=validate_every * options.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=every,
        logger=list(loggers) or False,
        plugins=[AtomicCheckpointIO(), *_alone(options)],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's advice on loaders and hardware out of what the user sees."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def make_loggers(options: TrainerOptions, directory: Path, *, first_step: int, name: str) -> list[Logger]:
    """Return the TensorBoard logger, and those that ``options`` ask for.

    Args:
        options: With ``wandb`` and ``mlflow``.
        directory: Directory of the training.
        first_step: The step that comes first; later ones that were logged before are hidden.
        name: What other services call the training.

    Raises:
        ValueError: If the extra of a logger is not installed.
    """
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    loggers: list[Logger] = [
        TensorBoardLogger(directory, name="tensorboard", version="", purge_step=first_step)
    ]
    if options.wandb:
        _need("wandb")
        loggers.append(WandbLogger(name=name, save_dir=directory, project="gatework"))
    if options.mlflow:
        _need("mlflow")
        loggers.append(MLFlowLogger(run_name=name, experiment_name="gatework"))
    return loggers


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"trainer.{package}=true needs the extra {package!r}: pip install 'gatework[{package}]'"
        )


def _alone(options: TrainerOptions) -> list[LightningEnvironment]:
    """Keep a training of one process to itself, also among the tasks of a scheduler."""
    return [LightningEnvironment()] if options.devices == 1 else []


def device_of(options: TrainerOptions) -> torch.device:
    """Return the device that ``options`` mean, for work outside a trainer."""
    kind = options.accelerator
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(kind)


def _strategy(options: TrainerOptions, blocks: Collection[type[nn.Module]]) -> Strategy | str:
    if options.strategy == "fsdp":
        if device_of(options).type != "cuda":
            raise ValueError(
                "trainer.strategy='fsdp' needs CUDA devices, and "
                f"trainer.accelerator={options.accelerator!r} means {device_of(options).type} here; use 'ddp'"
            )
        if options.ema_decay is not None:
            raise ValueError("trainer.ema_decay averages whole models, and not those that 'fsdp' shards")
        # One unit per block: its weights are gathered when it runs, what is around the blocks once a step.
        return FSDPStrategy(auto_wrap_policy=set(blocks), state_dict_type="full")
    if options.devices > 1 or options.strategy == "ddp":
        settings: dict[str, Any] = {"broadcast_buffers": False}  # ours are constants
        return DDPStrategy(**settings)
    return "auto"
