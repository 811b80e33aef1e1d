"""gatework: build with, verify, train and measure token mixers.

Names are imported when they are used, so that ``import gatework`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gatework._version import __version__

if TYPE_CHECKING:
    from gatework import masks, ops
    from gatework.checkpoints import CheckpointError, load_checkpoint
    from gatework.registry import (
        create_mixer,
        create_model,
        list_mixers,
        list_models,
        register_mixer,
        register_model,
    )
    from gatework.study.compare import compare
    from gatework.study.study import Study
    from gatework.tasks import register_task

_HOMES = {
    "CheckpointError": "gatework.checkpoints",
    "Study": "gatework.study.study",
    "compare": "gatework.study.compare",
    "load_checkpoint": "gatework.checkpoints",
    "create_mixer": "gatework.registry",
    "create_model": "gatework.registry",
    "list_mixers": "gatework.registry",
    "list_models": "gatework.registry",
    "register_mixer": "gatework.registry",
    "register_model": "gatework.registry",
    "register_task": "gatework.tasks",
}
_SUBMODULES = ("masks", "ops")

__all__ = [
    "CheckpointError",
    "Study",
    "__version__",
    "compare",
    "create_mixer",
    "create_model",
    "list_mixers",
    "list_models",
    "load_checkpoint",
    "masks",
    "ops",
    "register_mixer",
    "register_model",
    "register_task",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"gatework.{name}")
    raise AttributeError(f"module 'gatework' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
