"""``gatework predict``: what a trained model makes of each example, or of what its task's own options ask."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.dataclass_options import add_dataclass_options
from gatework.cli.recipe_options import add_recipe_arguments, add_weights_arguments, recipe_and_weights
from gatework.files import FileError, check_file, replacing
from gatework.tasks import check_task, list_tasks, task_declaration
from gatework.yaml_values import read_yaml_file

_OUTPUT = "predictions.jsonl"


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments, and those of the task that the words of the command name.

    Args:
        parser: Takes them.
        argv: The words of the command. Where they name no task, the options of all tasks are added.
    """
    add_weights_arguments(parser)
    parser.add_argument("--split", choices=["validation", "test"], default="test", help="which data")
    parser.add_argument("--output", type=str, default=_OUTPUT, help="file with one JSON object per example")
    task = _task_in(argv)
    if task is not None:
        _check_names(task, argv)
    for name, kind in _option_kinds([task] if task is not None else list_tasks()).items():
        group = parser.add_argument_group(f"of task {name}")
        add_dataclass_options(group, kind)
    add_recipe_arguments(parser)


def _check_names(task: str, argv: Sequence[str]) -> None:
    """Refuse the options of other tasks, by name."""
    own = {name for kind in _option_kinds([task]).values() for name in _names(kind)}
    for other, kind in _option_kinds([name for name in list_tasks() if name != task]).items():
        for word in argv:
            name = word[2:].split("=")[0]
            if word.startswith("--") and name in _names(kind) and name not in own:
                raise ValueError(f"--{name} is an option of task {other!r}, and this is task {task!r}")


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _option_kinds(tasks: Sequence[str]) -> dict[str, type[Any]]:
    """The dataclasses of the tasks' own options; of tasks that share one, the first."""
    found: dict[str, type[Any]] = {}
    for task in tasks:
        kind = task_declaration(task).predict_options
        taken = {name for other in found.values() for name in _names(other)}
        if kind is not None and not taken.intersection(_names(kind)):
            found[task] = kind
    return found


def _task_in(argv: Sequence[str]) -> str | None:
    """Return the task that the words of a command name: by itself, in a recipe, or in a training's."""
    values: dict[str, str] = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = word.partition("=")
        values[name] = value or following
    places = (
        (Path(values["--run"]) / "recipe.yaml" if "--run" in values else None),
        (Path(values["--config"]) if "--config" in values else None),
    )
    named: Any = values.get("--task")
    for path in places:
        if named is None and path is not None:
            try:
                recipe = read_yaml_file(path)
            except FileError:
                continue  # said where it is read
            named = recipe.get("task") if isinstance(recipe, dict) else None
    if named is None:
        return None
    check_task(named)
    return str(named)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Write the predictions, or print the text."""
    recipe, weights = recipe_and_weights(arguments)
    kind = task_declaration(recipe.task).predict_options
    options = None
    if kind is not None:
        options = kind(**{name: arguments[name] for name in _names(kind)})
    path = Path(arguments.output)
    if kind is None or arguments.output != _OUTPUT:  # which a prompt, say, does not write
        check_file("output", path)
    from gatework.tasks.task import Prediction
    from gatework.training.trained import make_task, predict, trained_module, write_rows

    task = make_task(recipe)
    module = trained_module(recipe, task, weights)
    bar = sys.stderr.isatty()
    request = Prediction(arguments.split, options, weights, seed=arguments.seed, bar=bar)
    found = predict(recipe, module, task, request)
    if isinstance(found, str):
        print(found)
        return 0
    with replacing(path) as file:
        count = write_rows(file, found)
    noun = task.declaration.unit.example
    print(f"{path}: {count:,} {noun}s of the {arguments.split} data", file=sys.stderr)
    return 0
