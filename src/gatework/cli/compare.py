"""``gatework compare TASK``: the main job. Train candidates on one task, resume if killed, write the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.cli.dataclass_options import add_dataclass_options
from gatework.cli.plain_values import PlainValue
from gatework.files import FileError
from gatework.registry import load_entry_points
from gatework.study.compare import run_comparison
from gatework.study.options import CHOICES, OPTIONS, CompareOptions, option_meanings, unknown_option
from gatework.tasks import check_task, list_tasks, task_declaration
from gatework.tasks.declaration import Declaration
from gatework.yaml_values import read_yaml_file

#: The task whose options `--help` shows where none is named: it has all that any built-in task has.
_SHOWN = "text"
#: Fields that are no options here: the task names some, the command line is another.
_NOT_HERE = ("task", "candidates", "sizes", "measure", "companion", "plugins", "progress", "command")


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments; all but the task and plugins may stand in a YAML file.

    Args:
        parser: Takes them.
        argv: The words of the command: the task among them says what the axes are called.

    Raises:
        TypeError: If an option is one that the task does not have.
        ValueError: If there is no such task.
    """
    task = _task_in(argv)
    declared = task_declaration(task or _SHOWN)
    parser.add_argument("task", type=str, help=f"what to train for: {', '.join(list_tasks())}")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    _add_axes(parser, declared)
    choices = {"budget": declared.budgets, "executor": CHOICES}
    add_dataclass_options(parser, CompareOptions, skip=_NOT_HERE, choices=choices)
    add_plugin_argument(parser)
    if task is not None:
        _check_names(task, argv)


def _add_axes(parser: ArgumentParser, declared: Declaration) -> None:
    """Add the options that the task names."""
    candidates, sizes = declared.candidates, declared.sizes
    parser.add_argument(
        f"--{candidates.plural}",
        type=Literal["all"] | list[str] | dict[str, PlainValue] | None,
        default=list(candidates.default) or None,
        help=candidates.about or f"names of {candidates.plural}, or labels with their options (YAML)",
    )
    parser.add_argument(
        f"--{sizes.plural}",
        type=list[int] | None,
        default=list(sizes.default) or None,
        help=sizes.about or f"values of the {sizes.title}",
    )
    for scaling in declared.scalings:
        parser.add_argument(
            f"--{scaling.option}", type=list[int], default=list(scaling.default), help=scaling.about
        )
    if declared.companion is not None:
        kind: Any = dict[str, PlainValue] | None
        parser.add_argument(
            f"--{declared.companion.option}", type=kind, default=None, help=declared.companion.about
        )


def _task_in(argv: Sequence[str]) -> str | None:
    """Return the task among the words of a command; None if only help is asked for, or none is named."""
    if argv and not argv[0].startswith("-"):
        check_task(argv[0])
        return argv[0]
    load_entry_points()
    return next((word for word in argv if word in list_tasks()), None)


def _check_names(task: str, argv: Sequence[str]) -> None:
    """Refuse options that the task does not have, before values are read: they would hide what is wrong."""
    known = {*option_meanings(task_declaration(task)), *OPTIONS, "config", "plugin", "help"}
    known -= {"measure", "plugins", "progress", "command"}
    named = [word[2:].split("=")[0].split(".")[0] for word in argv if word.startswith("--")]
    for word, value in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config" or word.startswith("--config="):
            named += _names_in(Path(word.partition("=")[2] or value))
    for name in named:
        if name not in known:
            raise TypeError(unknown_option(task, name))


def _names_in(path: Path) -> list[str]:
    """The options that a YAML file holds; none if it cannot be read, which is said where it is."""
    try:
        found = read_yaml_file(path)
    except FileError:
        return []
    return [str(name).replace("-", "_") for name in found] if isinstance(found, dict) else []


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Plan, check, execute what is missing, and write the page.

    Returns:
        0 if every run finished or diverged, 1 if one failed or is missing, 128 + signal if interrupted; that
        holds for the runs of a study beside it too.
    """
    options = arguments.as_dict()
    del options["config"]
    task, plugins = options.pop("task"), options.pop("plugin")
    study = run_comparison(CompareOptions.of(task, **options, plugins=plugins, command=shlex.join(command)))
    if study.outcome is None:
        return 0
    print(f"page: {study.directory / 'report.html'}", file=sys.stderr)
    beside = study.companion.outcome if study.companion else None
    return max(study.outcome.exit_code, beside.exit_code if beside else 0)
