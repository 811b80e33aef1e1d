"""``gatework validate``: score a trained model on validation or test data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.recipe_options import add_recipe_arguments, add_weights_arguments, recipe_and_weights
from gatework.files import check_file, write_json

if TYPE_CHECKING:
    from gatework.tasks.module import TaskModule
    from gatework.tasks.task import Quality


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    add_weights_arguments(parser)
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="which data")
    parser.add_argument("--json", type=str, default=None, help="also write the numbers to this file")
    add_recipe_arguments(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Print a table of the scores."""
    if arguments.json is not None:
        check_file("json", Path(arguments.json))
    recipe, weights = recipe_and_weights(arguments)
    from gatework.training.trained import make_task, score, split_batches, trained_module

    task = make_task(recipe)
    module = trained_module(recipe, task, weights)
    scores = score(module, split_batches(task, arguments.split), recipe.trainer)
    if arguments.json is not None:
        record = {
            "format": "gatework.scores/1",
            "task": recipe.task,
            "split": arguments.split,
            "weights": str(weights),
            **scores,
        }
        write_json(Path(arguments.json), record)
    title = f"{weights}, {arguments.split} data of task {recipe.task}"
    print(_table(title, task.quality, scores, module))
    return 0


def _table(title: str, quality: Quality, scores: dict[str, Any], module: TaskModule) -> str:
    loss = f"loss ({module.loss_unit})" if module.loss_unit else "loss"
    rows = [(quality.name, scores["quality"]), (loss, scores["loss"])]
    rows += [(f"{module.slice_measure}, {name}", value) for name, value in sorted(scores["slices"].items())]
    rows += [(name, value) for name, value in scores.items() if name not in ("quality", "loss", "slices")]
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:{width}}  {_number(value)}" for name, value in rows)])


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
