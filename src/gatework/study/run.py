"""One run of a study: build task and model from a spec, train, choose by validation, report on test data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.registry import suggestion
from gatework.study.decoding import FLOAT_BYTES, decoding_speed
from gatework.study.flops import step_cost
from gatework.study.results import RESULT_FORMAT, no_metrics
from gatework.study.spec import RunSpec
from gatework.tasks import create_task
from gatework.tasks.next_token import DivergedError, NextTokenModule
from gatework.tasks.task import Task, Training
from gatework.training.environment import environment
from gatework.training.options import TrainerOptions
from gatework.training.trainer import make_trainer, quiet


def execute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train one model and return its result as JSON.

    Weights and the order of the data follow from the spec's seed, the data from its setting alone, so that
    every mixer reads the same. The learning curve is of validation data; test data are read once, after the
    last step, and then decoding is timed. Training that stops being finite is a result, with status
    ``"diverged"``.

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
        "cost": _cost(model, task, recorder),
        "curve": recorder.curve,
        "decoding": decoding_speed(model, run.decode_contexts) if message is None else None,
        "environment": environment(),
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
        self.examples: dict[torch.Size, TokenBatch] = {}
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
        self.tokens += batch.num_tokens
        self.examples.setdefault(batch.inputs.shape, batch)
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

    def batches(self) -> Iterator[tuple[TokenBatch, int]]:
        """Yield a batch of each shape that was trained on, and how many there were."""
        for shape, example in self.examples.items():
            yield example, len(self._seconds[shape])

    def seconds(self) -> float:
        """Time of all training steps, evaluation not counted."""
        return sum(map(sum, self._seconds.values()))

    def tokens_per_second(self) -> float | None:
        """Throughput, had every step taken the median time of its size: other work disturbs only some."""
        typical = sum(len(times) * statistics.median(times) for times in self._seconds.values())
        return self.tokens / typical if typical else None


def _evaluate(trainer: Trainer, module: NextTokenModule, task: Task, recorder: _Recorder) -> dict[str, Any]:
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


def _cost(model: GateworkForCausalLM, task: Task, recorder: _Recorder) -> dict[str, Any]:
    steps = [(step_cost(model, batch), count) for batch, count in recorder.batches()]
    flops = sum(step.flops * count for step, count in steps)
    published = model.published_state_size(task.length)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": model.state_size(task.length) * FLOAT_BYTES,
        "published_state_bytes": None if published is None else published * FLOAT_BYTES,
        "activation_bytes": max((step.activation_bytes for step, _ in steps), default=None),
        "flops_per_token": flops / recorder.tokens if recorder.tokens else None,
        "training_flops": flops,
        "training_tokens": recorder.tokens,
        "seconds": recorder.seconds(),
        "tokens_per_second": recorder.tokens_per_second(),
    }
