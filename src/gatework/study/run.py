"""One run of a study: build task and model from a spec, train, choose by validation, report on test data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from gatework.study.flops import step_cost
from gatework.study.plan import model_options
from gatework.study.results import RESULT_FORMAT, no_metrics
from gatework.study.spec import RunSpec
from gatework.tasks import create_task
from gatework.tasks.batches import batch_shape
from gatework.tasks.module import DivergedError, TaskModule, make_module
from gatework.tasks.task import Task, Training
from gatework.training.environment import environment
from gatework.training.options import TrainerOptions
from gatework.training.trainer import make_trainer, quiet


def execute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and return its result as JSON.

    Weights and the order of the data follow from the spec's seed, the data from its setting alone, so that
    every candidate reads the same. The learning curve is of validation data; test data are read once, after
    the last step, and then what scales is measured. Training that stops being finite is a result, with
    status ``"diverged"``.

    Args:
        spec: A run as :class:`~gatework.study.spec.RunSpec` writes it.

    Raises:
        ValueError: If a value in it is impossible.
        TypeError: If an option is unknown.
    """
    run = RunSpec.from_json(spec)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    task = create_task(run.task, run.setting)
    training = Training.of(run.training)
    torch.manual_seed(run.seed)
    model = task.build_model(model_options(task, run))
    module = make_module(task, model, training, run.learning_rate)
    batches = task.train_batches(training.batch_size, steps=training.steps, seed=run.seed)
    recorder = _Recorder(task)
    metrics, message = no_metrics(), None
    try:
        with quiet():
            trainer = make_trainer(
                TrainerOptions(accelerator="cpu"),
                steps=training.steps,
                validate_every=training.steps // training.evaluations,
                callbacks=[recorder],
            )
            trainer.fit(module, batches, task.validation_batches())
            metrics = _evaluate(trainer, module, task, recorder)
    except DivergedError as error:
        message = str(error)
    return {
        "format": RESULT_FORMAT,
        "run_id": run.run_id,
        "spec": run.to_json(),
        "status": "finished" if message is None else "diverged",
        "message": message,
        "metrics": metrics,
        "cost": _cost(module, task, recorder),
        "curve": recorder.curve,
        "scaling": _scaling(model, task, run) if message is None else {},
        "environment": environment(),
        "started": started,
    }


class _Recorder(Callback):
    """Records the learning curve, and the time that training steps take."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.unit = task.declaration.unit
        self.curve: list[dict[str, Any]] = []
        self.steps = 0
        self.work = 0
        self.examples: dict[tuple[torch.Size, ...], Any] = {}
        self._seconds: dict[tuple[torch.Size, ...], list[float]] = {}
        self._losses: list[float] = []
        self._step_started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        seconds, shape = time.perf_counter() - self._step_started, batch_shape(batch)
        self._seconds.setdefault(shape, []).append(seconds)
        self.steps += 1
        self.work += self.task.work(batch)
        self.examples.setdefault(shape, batch)
        self._losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, TaskModule)
        train_loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        self.curve.append(
            {
                "step": self.steps,
                self.unit.plural: self.work,
                "seconds": self.seconds(),
                "train_loss": train_loss,
                "loss": module.summary["loss"],
                "quality": module.quality(),
            }
        )

    def batches(self) -> Iterator[tuple[Any, int]]:
        """Yield a batch of each shape that was trained on, and how many there were."""
        for shape, example in self.examples.items():
            yield example, len(self._seconds[shape])

    def seconds(self) -> float:
        """Time of all training steps, evaluation not counted."""
        return sum(map(sum, self._seconds.values()))

    def rate(self) -> float | None:
        """Throughput, had every step taken the median time of its shape: other work disturbs only some."""
        typical = sum(len(times) * statistics.median(times) for times in self._seconds.values())
        return self.work / typical if typical else None


def _evaluate(trainer: Trainer, module: TaskModule, task: Task, recorder: _Recorder) -> dict[str, Any]:
    """Score the model after its last step, on validation data and then, once, on test data."""
    last = recorder.curve[-1] if recorder.curve else None
    if last is None or last["step"] < recorder.steps:
        trainer.validate(module, task.validation_batches(), verbose=False)
        last = recorder.curve[-1]
    trainer.test(module, task.test_batches(), verbose=False)
    return {
        "quality": module.quality(),
        "loss": module.summary["loss"],
        "validation_quality": last["quality"],
        "validation_loss": last["loss"],
        "slices": module.summary["slices"],
        **module.summary["measures"],
    }


def _cost(module: TaskModule, task: Task, recorder: _Recorder) -> dict[str, Any]:
    unit = task.declaration.unit
    steps = [(step_cost(module, batch), count) for batch, count in recorder.batches()]
    flops = sum(step.flops * count for step, count in steps)
    return {
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        **task.costs(module.model),
        "activation_bytes": max((step.activation_bytes for step, _ in steps), default=None),
        unit.flops: flops / recorder.work if recorder.work else None,
        "training_flops": flops,
        unit.total: recorder.work,
        "seconds": recorder.seconds(),
        unit.rate: recorder.rate(),
    }


def _scaling(model: nn.Module, task: Task, run: RunSpec) -> dict[str, Any]:
    """Measure what was asked for at growing points."""
    return {
        scaling.key: task.measure(model, scaling, run.measure[scaling.option])
        for scaling in task.declaration.scalings
        if run.measure.get(scaling.option)
    }
