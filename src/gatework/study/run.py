"""One run of a study: build task and model from a spec, train, evaluate, measure."""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import lightning
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gatework import __version__
from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.registry import suggestion
from gatework.study.results import RESULT_FORMAT
from gatework.study.spec import RunSpec
from gatework.tasks import create_task
from gatework.tasks.next_token import DivergedError, NextTokenModule
from gatework.tasks.task import Task, Training

_FLOAT_BYTES = 4


def execute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and return its result as JSON.

    Weights and the order of the data follow from the spec's seed, the data from its setting alone, so that
    every mixer reads the same. Training that stops being finite is a result, with status ``"diverged"``.

    Args:
        spec: A run as :class:`~gatework.study.spec.RunSpec` writes it.

    Raises:
        ValueError: If a value in it is impossible.
        TypeError: If an option is unknown.
    """
    run = RunSpec.from_json(spec)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    task = create_task(run.task, run.setting)
    training = make_training(run.training)
    torch.manual_seed(run.seed)
    model = GateworkForCausalLM(make_config(run, task))
    module = task.module(model, training, run.learning_rate)
    batches = task.train_batches(training.batch_size, steps=training.steps, seed=run.seed)
    recorder = _Recorder()
    message = None
    try:
        with _quiet():
            trainer = _trainer(training, recorder)
            trainer.fit(module, batches, task.test_batches())
            if recorder.curve[-1]["step"] < training.steps:  # what is reported is the model after the last
                trainer.validate(module, task.test_batches(), verbose=False)
    except DivergedError as error:
        message = str(error)
    return {
        "format": RESULT_FORMAT,
        "run_id": run.run_id,
        "spec": run.to_json(),
        "status": "finished" if message is None else "diverged",
        "message": message,
        "metrics": _metrics(module, diverged=message is not None),
        "cost": _cost(model, task, recorder),
        "curve": recorder.curve,
        "environment": _environment(),
        "started": started,
    }


def make_training(options: Mapping[str, Any]) -> Training:
    """Make the training options of a spec.

    Raises:
        TypeError: If there is no such option.
        ValueError: If a value is out of range.
    """
    known = [field.name for field in fields(Training)]
    for option in options:
        if option not in known:
            raise TypeError(f"training has no option {option!r}{suggestion(option, known)}")
    return Training(**options)


def make_config(run: RunSpec, task: Task) -> GateworkConfig:
    """Make the model's configuration: two layers at least, every layer of the spec at least once.

    Raises:
        TypeError: If the spec's ``model`` has an unknown option.
        ValueError: If a value is impossible.
    """
    own = {"vocab_size", "hidden_size", "mixers", "context_length"}
    known = sorted(set(GateworkConfig.__annotations__) - own - {"model_type"})
    for option in run.model:
        if option not in known:
            raise TypeError(f"model has no option {option!r}{suggestion(option, known)}")
    options = {"num_hidden_layers": max(2, len(run.layers)), "use_cache": False, **run.model}
    return GateworkConfig(
        vocab_size=task.vocab_size,
        hidden_size=run.width,
        mixers=[dict(layer) for layer in run.layers],
        context_length=task.length,
        **options,
    )


class _Recorder(Callback):
    """Records the learning curve, and the time that training steps take."""

    def __init__(self) -> None:
        self.curve: list[dict[str, Any]] = []
        self.steps = 0
        self.tokens = 0
        self.largest: TokenBatch | None = None
        self._seconds: dict[torch.Size, list[float]] = {}
        self._losses: list[float] = []
        self._step_started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: TokenBatch, batch_idx: int
    ) -> None:
        seconds = time.perf_counter() - self._step_started
        self._seconds.setdefault(batch.inputs.shape, []).append(seconds)
        self.steps += 1
        self.tokens += batch.inputs.numel()
        if self.largest is None or batch.inputs.numel() > self.largest.inputs.numel():
            self.largest = batch
        self._losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, NextTokenModule)
        train_loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        self.curve.append(
            {
                "step": self.steps,
                "tokens": self.tokens,
                "seconds": self.seconds(),
                "train_loss": train_loss,
                "loss": module.summary["loss"],
                "quality": module.quality(),
            }
        )

    def seconds(self) -> float:
        """Time of all training steps, evaluation not counted."""
        return sum(map(sum, self._seconds.values()))

    def tokens_per_second(self) -> float | None:
        """Throughput, had every step taken the median time of its size: other work disturbs only some."""
        typical = sum(len(times) * statistics.median(times) for times in self._seconds.values())
        return self.tokens / typical if typical else None


def _trainer(training: Training, recorder: _Recorder) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=training.steps,
        max_epochs=-1,
        val_check_interval=training.steps // training.evaluations,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice on loaders and hardware out of a study's progress."""
    import logging

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)


def _metrics(module: NextTokenModule, *, diverged: bool) -> dict[str, Any]:
    if diverged or not module.summary:
        return {"quality": None, "loss": None, "slices": {}}
    return {"quality": module.quality(), "loss": module.summary["loss"], "slices": module.summary["slices"]}


def _cost(model: GateworkForCausalLM, task: Task, recorder: _Recorder) -> dict[str, Any]:
    largest = recorder.largest
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": model.state_size(task.length) * _FLOAT_BYTES,
        "activation_bytes": None if largest is None else activation_bytes(model, largest),
        "seconds": recorder.seconds(),
        "tokens_per_second": recorder.tokens_per_second(),
    }


def activation_bytes(model: GateworkForCausalLM, batch: TokenBatch) -> int:
    """Return the bytes that one training step keeps for its backward pass, parameters not counted.

    Counted are the distinct storages that autograd saves, so the number repeats exactly and does not depend
    on what else the process does.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # A batch cut out of a data set shares the storage of the whole: a copy is what a step would hold.
    inputs, labels = batch.inputs.clone(), batch.labels.clone()
    was_training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = model(inputs, shift_labels=labels).loss
    del loss
    model.train(was_training)
    return sum(kept.values())


def _environment() -> dict[str, Any]:
    return {
        "gatework": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
