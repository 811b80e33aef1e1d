"""What a model is trained for: data, loss and metrics of each task, one file per task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatework.registry import load_entry_points, suggestion

if TYPE_CHECKING:
    from gatework.tasks.task import Task

#: Task names and their classes, imported when a task is made.
TASKS: dict[str, str | type[Task]] = {
    "recall": "gatework.tasks.recall:RecallTask",
    "text": "gatework.tasks.text:TextTask",
}


def list_tasks() -> list[str]:
    """Return the names that :func:`create_task` knows, sorted."""
    return sorted(TASKS)


def register_task(name: str, target: str | type[Task]) -> None:
    """Add a task of your own, so that recipes and studies can name it.

    Args:
        name: The new name; one that exists already is refused.
        target: A class with the methods of :class:`~gatework.tasks.task.Task`, or ``"module:Class"`` to
            import it later.

    Raises:
        ValueError: If the name is taken.
    """
    if name in TASKS:
        raise ValueError(f"task {name!r} is already registered as {TASKS[name]!r}")
    TASKS[name] = target


def create_task(name: str, setting: Mapping[str, Any]) -> Task:
    """Make a task from its name and a JSON setting.

    Raises:
        ValueError: If there is no such task, or the setting is impossible.
        TypeError: If the setting has an unknown option or one of another type.
    """
    if name not in TASKS:
        load_entry_points()
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known{suggestion(name, list_tasks())}")
    target = TASKS[name]
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
    task: Task = target.from_setting(setting)
    return task
