"""What a task is: data, models, training and costs behind one interface; light to import."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gatework.checks import check_choice, check_int, check_names, check_number, check_text
from gatework.tasks.declaration import Declaration, Scaling

if TYPE_CHECKING:
    from torch import nn

    from gatework.tasks.module import TaskModule


@dataclass(frozen=True)
class Training:
    """How a run is trained: what a spec's ``training`` holds.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples per step: sequences, images.
        weight_decay: The optimizer's decay, on all parameters.
        warmup: Fraction of the steps over which the learning rate rises.
        final_rate: Learning rate at the end over its peak; it falls along a cosine.
        gradient_clip: Largest norm of the gradient.
        beta2: AdamW's second momentum.
        evaluations: Points of the learning curve, one more if they do not divide the steps.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.

    Raises:
        TypeError: If a value has another type.
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
            check_int(f"training.{name}", getattr(self, name), at_least=1)
        if self.evaluations > self.steps:
            raise ValueError(
                f"training.evaluations must be at most steps={self.steps}, got {self.evaluations}"
            )
        check_choice("training.optimizer", self.optimizer, ("adamw", "sgd"))
        check_number("training.weight_decay", self.weight_decay, at_least=0)
        check_number("training.warmup", self.warmup, at_least=0, at_most=1)
        check_number("training.final_rate", self.final_rate, at_least=0, at_most=1)
        check_number("training.gradient_clip", self.gradient_clip, above=0)
        check_number("training.beta2", self.beta2, at_least=0, below=1)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Training:
        """Make the training of a spec's options.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is out of range.
        """
        known = [field.name for field in fields(cls)]
        check_names("training has no option", options, known)
        return cls(**options)


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
        check_text("name", self.name)
        check_choice("better", self.better, ("higher", "lower"))
        if not isinstance(self.unit, str):
            raise TypeError(f"unit must be text, got {self.unit!r}")
        if self.range is not None and not (
            len(self.range) == 2 and all(map(_is_finite, self.range)) and self.range[0] < self.range[1]
        ):
            raise ValueError(f"range must be two growing numbers, got {self.range!r}")
        if self.chance is not None:
            check_number("chance", self.chance)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Task:
    """One setting of a task: its data, how a model is built for it, and the module that trains one.

    Subclasses are made from a JSON setting and declare, as class attributes or properties, ``declaration``
    and ``quality``. They must have :meth:`describe`, :meth:`train_batches`, :meth:`validation_batches`,
    :meth:`test_batches`, :meth:`build_model` and :meth:`module`; what else is here they may override.

    Attributes:
        declaration: Axes, units, costs and report sections, known before anything heavy is imported.
    """

    declaration: ClassVar[Declaration]

    @property
    def quality(self) -> Quality:
        """The headline number."""
        raise NotImplementedError

    @classmethod
    def from_setting(cls, setting: Mapping[str, Any]) -> Task:
        """Make the task from a JSON setting, refusing an impossible one at once.

        Here the options of a setting are the fields of the class, if it is a dataclass.

        Raises:
            TypeError: If there is no such option, or a value has another type.
            ValueError: If a value is out of range.
        """
        known = list(getattr(cls, "__dataclass_fields__", {}))
        if known:
            check_names("setting has no option", setting, known)
        return cls(**setting)

    def describe(self) -> list[str]:
        """Return sentences about the data for the report."""
        raise NotImplementedError

    def train_batches(self, batch_size: int, *, steps: int, seed: int) -> Iterable[Any]:
        """Return training batches: the data are the task's, only their order follows from ``seed``.

        ``gatework fit`` needs a :class:`~gatework.data.loader.ResumableLoader`, a study anything that has at
        least ``steps`` batches, or can be read again.
        """
        raise NotImplementedError

    def validation_batches(self) -> Iterable[Any]:
        """Return the batches to choose by (learning rates, checkpoints); none of them is test data."""
        raise NotImplementedError

    def test_batches(self) -> Iterable[Any]:
        """Return the batches to report on, which nothing was chosen by."""
        raise NotImplementedError

    def batches_per_epoch(self, batch_size: int) -> int | None:
        """Return the batches of one pass over the training data; None if they have no end."""
        return None

    def model_options(self, definition: Any, size: int) -> dict[str, Any]:
        """Return what a candidate at a size means as options of :meth:`build_model`.

        Args:
            definition: The candidate's, as :attr:`Declaration.parse` has read it.
            size: A value of the axis of sizes.

        Returns:
            Here the options of the definition, and the size under the name of its axis.
        """
        return {**definition, self.declaration.sizes.name: size}

    def build_model(self, options: Mapping[str, Any]) -> nn.Module:
        """Build a model for the data of this setting; its weights follow from PyTorch's random state.

        Must also work under ``torch.device("meta")``: studies check their plans so.

        Args:
            options: The ``model`` section of a recipe, or :meth:`model_options` with a study's ``model``.

        Raises:
            TypeError: If there is no such option.
            ValueError: If a value is impossible.
        """
        raise NotImplementedError

    def module(self, model: Any, training: Training, learning_rate: float) -> TaskModule:
        """Return the Lightning module that trains ``model``."""
        raise NotImplementedError

    def work(self, batch: Any) -> int:
        """Return how many units of work are in a batch; here the number of its examples."""
        from gatework.tasks.batches import num_examples

        return num_examples(batch)

    def costs(self, model: Any) -> dict[str, int | float | None]:
        """Count the costs that the task declares beside the common ones; ``None`` where there is none."""
        return {}

    def measure(self, model: Any, scaling: Scaling, points: Sequence[int]) -> dict[str, Any]:
        """Measure a trained model at growing points, for each :class:`Scaling` that the task declares.

        Returns:
            ``measured``, an object for each point that was reached with the point and every curve's value,
            and ``stopped``, why longer points are missing, or None.
        """
        raise NotImplementedError

    def predict(self, module: TaskModule, request: Prediction) -> Iterable[dict[str, Any]] | str:
        """Return what ``gatework predict`` gives: rows for a file, or a text to print.

        Here a row for each example of the split, as :meth:`TaskModule.predictions` writes it.
        """
        from gatework.tasks.batches import predict_batches

        batches = self.validation_batches() if request.split == "validation" else self.test_batches()
        return predict_batches(module, batches, bar=request.bar)

    def save_model(self, model: Any, directory: Path) -> None:
        """Write a trained model to an empty folder, with its weights in ``model.safetensors``.

        What must lie beside them so that others can load the model is the task's to write.
        """
        from safetensors.torch import save_model

        directory.mkdir(parents=True, exist_ok=True)
        save_model(model, str(directory / "model.safetensors"))


@dataclass(frozen=True)
class Prediction:
    """What ``gatework predict`` asks of a task.

    Attributes:
        split: ``"validation"`` or ``"test"``.
        options: The task's own options, of its ``predict_options``; None if it has none.
        weights: The file that the weights came from.
        seed: Seed of whatever is random.
        bar: Whether to show progress on standard error.
    """

    split: str
    options: Any
    weights: Path
    seed: int = 0
    bar: bool = False


#: What every task must have, beyond what :class:`Task` gives it.
_PARTS = (
    "declaration",
    "quality",
    "describe",
    "train_batches",
    "validation_batches",
    "test_batches",
    "build_model",
    "module",
)


def check_parts(name: str, kind: type[Task]) -> None:
    """Refuse a task without a part that it needs.

    Raises:
        TypeError: Naming the task and every part that it lacks.
    """
    declared = getattr(kind, "declaration", None)
    needed: tuple[str, ...] = _PARTS
    if declared is not None and not isinstance(declared, Declaration):
        raise TypeError(
            f"task {name!r}: declaration must be a gatework.tasks.declaration.Declaration, "
            f"got {declared!r:.80}"
        )
    if declared is not None and declared.costs:
        needed = (*needed, "costs")
    if declared is not None and declared.scalings:
        needed = (*needed, "measure")
    own = getattr(kind, "__dataclass_fields__", {})
    missing = [
        part for part in needed if part not in own and getattr(kind, part, None) is getattr(Task, part, None)
    ]
    if missing:
        raise TypeError(f"task {name!r} lacks {', '.join(missing)}: see gatework.tasks.task.Task")
