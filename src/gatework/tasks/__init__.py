"""What a model is trained for: data, loss and metrics of each task, one file per task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatework.registry import suggestion

if TYPE_CHECKING:
    from gatework.tasks.task import Task

#: Task names and their classes, imported when a task is made.
TASKS: dict[str, str] = {
    "recall": "gatework.tasks.recall:RecallTask",
    "text": "gatework.tasks.text:TextTask",
}


def list_tasks() -> list[str]:
    """Return the names that :func:`create_task` knows, sorted."""
    return sorted(TASKS)


def create_task(name: str, setting: Mapping[str, Any]) -> Task:
    """Make a task from its name and a JSON setting.

    Raises:
        ValueError: If there is no such task, or the setting is impossible.
        TypeError: If the setting has an unknown option or one of another type.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known{suggestion(name, list_tasks())}")
    module, _, attribute = TASKS[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute).from_setting(setting)
    return task
