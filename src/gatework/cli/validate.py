"""``gatework validate``: score a trained model on validation or test data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.recipe_options import add_recipe_arguments, add_weights_arguments, recipe_and_weights


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    add_weights_arguments(parser)
    parser.add_argument("--split", choices=["validation", "test"], default="validation", help="which data")
    parser.add_argument("--json", type=str, default=None, help="also write the numbers to this file")
    add_recipe_arguments(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Print a table of the scores."""
    recipe, weights = recipe_and_weights(arguments)
    from gatework.files import write_json
    from gatework.training.evaluate import load_weights, make_model, make_task, score, split_batches
    from gatework.training.options import FitTraining

    task = make_task(recipe)
    model = make_model(recipe, task)
    load_weights(model, weights)
    module = task.module(model, FitTraining(), recipe.learning_rate)
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
    print(_table(f"{weights}, {arguments.split} data of task {recipe.task}", task.quality, scores))
    return 0


def _table(title: str, quality: Any, scores: dict[str, Any]) -> str:
    rows = [(quality.name, scores["quality"]), ("loss (nats)", scores["loss"])]
    rows += [(f"accuracy, {name}", value) for name, value in sorted(scores["slices"].items())]
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:{width}}  {value:.4f}" for name, value in rows)])
