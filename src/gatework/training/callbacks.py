"""Callbacks that a recipe may name: Lightning's own from a list, and those of the user's plugins."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Callback

_LIGHTNING = "lightning.pytorch.callbacks"
#: Callbacks of Lightning that keep training exactly resumable.
ALLOWED = tuple(
    f"{_LIGHTNING}.{name}"
    for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary")
)


def check_callbacks(specs: Sequence[Mapping[str, Any]], plugins: Sequence[str]) -> None:
    """Refuse whatever a recipe may not name, without importing it.

    Args:
        specs: Mappings with ``class_path`` and, if wanted, ``init_args``.
        plugins: Modules that the user has named on the command line.

    Raises:
        ValueError: If a class is neither in :data:`ALLOWED` nor in a plugin.
        TypeError: If an entry has another form.
    """
    for spec in specs:
        if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
            raise TypeError(f"each of callbacks must be a mapping with class_path, got {spec!r}")
        if unknown := sorted(spec.keys() - {"class_path", "init_args"}):
            raise TypeError(f"a callback has class_path and init_args, and beside them {', '.join(unknown)}")
        if not isinstance(spec.get("init_args", {}), Mapping):
            raise TypeError(f"init_args of a callback must be a mapping, got {spec['init_args']!r}")
        path = spec["class_path"]
        if path not in ALLOWED and path.rpartition(".")[0] not in plugins:
            raise ValueError(
                f"class_path {path!r} is not allowed in a recipe, which must not import code of its own; "
                f"allowed are {', '.join(ALLOWED)}, and classes of modules given by --plugin"
            )


def make_callbacks(specs: Sequence[Mapping[str, Any]], plugins: Sequence[str] = ()) -> list[Callback]:
    """Make the callbacks that a recipe names.

    Args:
        specs: As for :func:`check_callbacks`.
        plugins: Modules, imported already.

    Raises:
        ValueError: If a class may not be named or does not exist.
        TypeError: If it is no callback, or has no such option.
    """
    check_callbacks(specs, plugins)
    return [_make(spec["class_path"], spec.get("init_args", {})) for spec in specs]


def _make(path: str, options: Mapping[str, Any]) -> Callback:
    from lightning import Callback
    from lightning.pytorch import callbacks

    module_name, _, name = path.rpartition(".")
    module = callbacks if module_name == _LIGHTNING else sys.modules.get(module_name)
    kind = getattr(module, name, None)
    if kind is None:
        raise ValueError(f"class_path {path!r} does not exist")
    if not (inspect.isclass(kind) and issubclass(kind, Callback)):
        raise TypeError(f"class_path {path!r} is no subclass of lightning.Callback")
    try:
        inspect.signature(kind).bind(**options)
    except TypeError as error:
        raise TypeError(f"init_args of {path}: {error}") from error
    callback: Callback = kind(**options)
    return callback
