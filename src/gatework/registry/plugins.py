"""Modules of the user's own, which register mixers, models and tasks wherever a model is built.

They are imported here, in worker processes and on other machines, by a name from a command line or a caller.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

#: The group of Python entry points through which installed packages bring mixers and tasks.
ENTRY_POINTS = "gatework.plugins"

#: What has been imported as a plugin, and the entry points that have been looked at.
_loaded_plugins: dict[str, None] = {}
_loaded_entry_points: set[str] = set()


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules of the user's own, which register mixers and tasks, or hold callbacks that recipes name.

    The current directory is importable for them, as for ``python -m``. Each is imported once per process.
    A plugin is code: names of plugins are taken from a caller or a command line, never from a file.

    Args:
        modules: Dotted names of modules that call :func:`~gatework.registry.mixers.register_mixer`,
            :func:`~gatework.registry.models.register_model` or :func:`~gatework.tasks.register_task` when
            they are imported.

    Raises:
        TypeError: If ``modules`` is no list of names.
        ValueError: If one cannot be imported, or raises.
    """
    if isinstance(modules, str) or not all(isinstance(module, str) for module in modules):
        raise TypeError(f"plugins must be a list of module names, got {modules!r}")
    for module in modules:
        if module not in _loaded_plugins:
            _load_plugin(module)
            _loaded_plugins[module] = None


def loaded_plugins() -> list[str]:
    """Return the plugins that this process has loaded, in the order of loading."""
    return list(_loaded_plugins)


def load_entry_points() -> None:
    """Load the plugins of installed packages: entry points of the group ``gatework.plugins``, each once.

    Raises:
        ValueError: If one cannot be imported or raises; the message names it.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        if point.value in _loaded_entry_points:
            continue
        _loaded_entry_points.add(point.value)  # also if it fails: what it names may be looked up meanwhile
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else "an installed package"
            raise ValueError(
                f"plugin {point.value!r} of {package} cannot be loaded: {_reason(error)}"
            ) from error


def _load_plugin(module: str) -> None:
    """Import one plugin, from the current directory or from wherever it is installed."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.invalidate_caches()
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(
                f"plugin {module!r} cannot be found: no module {error.name!r} in {os.getcwd()} or installed"
            ) from error
        raise ValueError(f"plugin {module!r} cannot be imported: {_reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"plugin {module!r} cannot be imported: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Say in one line what was raised, and where if that is in a file."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        where = "" if path.startswith("<") else f" ({path}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
