"""What a model is trained for: data, models, loss and costs of each task, one file per task.

Studies, trainings and the command line know tasks by what they declare (:mod:`gatework.tasks.declaration`)
and by the methods of :class:`gatework.tasks.task.Task`, and nothing else of what is trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatework.checks import named_in, suggestion
from gatework.registry import load_entry_points

if TYPE_CHECKING:
    from gatework.tasks.declaration import Declaration
    from gatework.tasks.task import Task


#: Task names and their classes, imported when a task is made.
TASKS: dict[str, str | type[Any]] = {
    "recall": "gatework.tasks.recall:RecallTask",
    "text": "gatework.tasks.text:TextTask",
}

#: Where the declaration of a class is that need not be imported for it.
_DECLARATIONS = {
    "gatework.tasks.recall:RecallTask": "gatework.tasks.language:LANGUAGE",
    "gatework.tasks.text:TextTask": "gatework.tasks.text_declaration:TEXT",
}


def list_tasks() -> list[str]:
    """Return the names that :func:`create_task` knows, sorted."""
    return sorted(TASKS)


def register_task(name: str, target: str | type[Any]) -> None:
    """Add a task of your own, so that recipes and studies can name it.

    Args:
        name: The new name; one that exists already is refused.
        target: A subclass of :class:`~gatework.tasks.task.Task`, or ``"module:Class"`` to import it later. A
            class with ``vocab_size`` and ``length`` that builds no model is taken for a task on tokens, see
            :class:`~gatework.tasks.language.LanguageTask`.

    Raises:
        TypeError: If the class lacks a part that every task needs.
        ValueError: If the name is taken.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name of a task must be text, got {name!r}")
    if name in TASKS:
        raise ValueError(f"task {name!r} is already registered as {TASKS[name]!r}")
    if not isinstance(target, str):
        target = _as_task(name, target)
    TASKS[name] = target


def check_task(name: Any) -> None:
    """Refuse a name that no task has; installed plugins are asked for it.

    Raises:
        TypeError: If it is no text.
        ValueError: If there is no such task; the message suggests the nearest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"task must be a name, got {name!r}")
    if name not in TASKS:
        load_entry_points()
    if name not in TASKS:
        hint = "; one of your own comes with the plugin that registers it"
        raise ValueError(f"task {name!r} is not known{suggestion(name, list_tasks())}{hint}")


def task_class(name: str) -> type[Task]:
    """Import and return the class of a task.

    Raises:
        TypeError: If the class lacks a part that every task needs.
        ValueError: If there is no such task, or its class cannot be imported.
    """
    check_task(name)
    target = TASKS[name]
    return _as_task(name, _imported(name, target) if isinstance(target, str) else target)


def task_declaration(name: str) -> Declaration:
    """Return what a task declares, without importing its class where that can be avoided.

    Raises:
        TypeError: If the class lacks a part that every task needs.
        ValueError: If there is no such task, or its class cannot be imported.
    """
    check_task(name)
    target = TASKS[name]
    if isinstance(target, str) and target in _DECLARATIONS:
        declaration: Declaration = _imported(name, _DECLARATIONS[target])
        return declaration
    return task_class(name).declaration


def create_task(name: str, setting: Mapping[str, Any]) -> Task:
    """Make a task from its name and a JSON setting.

    Raises:
        ValueError: If there is no such task, or the setting is impossible.
        TypeError: If the setting has an unknown option or one of another type.
    """
    kind = task_class(name)
    with named_in("setting", setting):
        return kind.from_setting(setting)


def _imported(name: str, place: str) -> Any:
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"task {name!r} cannot be imported from {place!r}: {error}") from error


def _as_task(name: str, kind: Any) -> type[Task]:
    """Complete a class to a :class:`Task`, and refuse one that lacks a part.

    A class of before tasks built their models has ``vocab_size`` and ``length``: its models read tokens.
    """
    from gatework.tasks.language import LanguageTask
    from gatework.tasks.task import Task, check_parts

    if not isinstance(kind, type):
        raise TypeError(f"task {name!r} must be a class, got {kind!r:.80}")
    if not issubclass(kind, Task):
        on_tokens = all(hasattr(kind, part) for part in ("vocab_size", "length"))
        base = LanguageTask if on_tokens and not hasattr(kind, "build_model") else Task
        kind = type(kind.__name__, (kind, base), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    check_parts(name, kind)
    completed: type[Task] = kind
    return completed
