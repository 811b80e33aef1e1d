"""What a study needs to know of a task; light to import."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from gatework.data.segment import TokenBatch
    from gatework.models.language.decoder import GateworkForCausalLM
    from gatework.tasks.next_token import NextTokenModule


@dataclass(frozen=True)
class Training:
    """How a run is trained: what a spec's ``training`` holds.

    Attributes:
        steps: Optimizer steps.
        batch_size: Sequences per step.
        weight_decay: The optimizer's decay, on all parameters.
        warmup: Fraction of the steps over which the learning rate rises.
        final_rate: Learning rate at the end over its peak; it falls along a cosine.
        gradient_clip: Largest norm of the gradient.
        beta2: AdamW's second momentum.
        evaluations: Points of the learning curve, one more if they do not divide the steps.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int = 1000
    batch_size: int = 64
    weight_decay: float = 0.1
    warmup: float = 0.1
    final_rate: float = 0.0
    gradient_clip: float = 1.0
    beta2: float = 0.95
    evaluations: int = 8
    optimizer: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluations"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"training.{name} must be a whole number of at least 1, got {value!r}")
        if self.evaluations > self.steps:
            raise ValueError(
                f"training.evaluations must be at most steps={self.steps}, got {self.evaluations}"
            )
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"training.optimizer must be 'adamw' or 'sgd', got {self.optimizer!r}")
        for name, low, high in (
            ("weight_decay", 0.0, sys.float_info.max),
            ("warmup", 0.0, 1.0),
            ("final_rate", 0.0, 1.0),
            ("gradient_clip", sys.float_info.min, sys.float_info.max),
            ("beta2", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"training.{name} must be a number from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True)
class Quality:
    """The headline number of a task: what the page's vertical axis shows.

    Attributes:
        name: Such as ``"accuracy"``.
        better: Which direction is better.
        unit: Such as ``"bits per byte"``; empty for a fraction.
        chance: What guessing scores, if that is known.
        range: Smallest and largest possible value, if there are such.
    """

    name: str
    better: Literal["higher", "lower"]
    unit: str = ""
    chance: float | None = None
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"quality name must be text, got {self.name!r}")
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better must be 'higher' or 'lower', got {self.better!r}")
        if not isinstance(self.unit, str):
            raise TypeError(f"unit must be text, got {self.unit!r}")
        if self.range is not None and not (
            len(self.range) == 2 and all(map(_is_finite, self.range)) and self.range[0] < self.range[1]
        ):
            raise ValueError(f"range must be two growing numbers, got {self.range!r}")
        if self.chance is not None and not _is_finite(self.chance):
            raise ValueError(f"chance must be a finite number, got {self.chance!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@runtime_checkable
class Task(Protocol):
    """One setting of a task: its data, and the module that trains a model on it.

    A task whose training examples are counted may also have ``batches_per_epoch(batch_size)``, the number of
    batches in a pass over them; ``gatework fit`` needs it for a training whose length is said in epochs.
    """

    quality: Quality

    @classmethod
    def from_setting(cls, setting: Mapping[str, Any]) -> Task:
        """Make the task from a JSON setting, refusing an impossible one at once."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def length(self) -> int:
        """Length of the longest sequences."""

    def describe(self) -> list[str]:
        """Return sentences about the data for the report."""

    def train_batches(self, batch_size: int, *, steps: int, seed: int) -> Iterable[TokenBatch]:
        """Return training batches: the data are the task's, only their order follows from ``seed``."""

    def validation_batches(self) -> Iterable[TokenBatch]:
        """Return the batches to choose by (learning rates, checkpoints); none of them is test data."""

    def test_batches(self) -> Iterable[TokenBatch]:
        """Return the batches to report on, which nothing was chosen by."""

    def module(self, model: GateworkForCausalLM, training: Training, learning_rate: float) -> NextTokenModule:
        """Return the Lightning module that trains ``model``."""
