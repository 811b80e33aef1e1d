"""A study compares mixers: a grid of runs, executed by local processes, with results that outlive a kill.

The floor reads upwards: :mod:`~gatework.study.spec` (what a run is), :mod:`~gatework.study.grid` (many of
them), :mod:`~gatework.study.results` (one file per ended run), :mod:`~gatework.study.executor` (who does the
work) and :mod:`~gatework.study.engine` (the study itself). None of these imports PyTorch; only workers do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatework.files import write_atomically
    from gatework.study.engine import StudyOutcome, run_study
    from gatework.study.plan import expand_grid
    from gatework.study.results import ResultStore
    from gatework.study.spec import RunSpec, StudyError, StudySpec
    from gatework.study.study import Study
    from gatework.tasks.task import Quality

_HOMES = {
    "Quality": "gatework.tasks.task",
    "ResultStore": "gatework.study.results",
    "RunSpec": "gatework.study.spec",
    "Study": "gatework.study.study",
    "StudyError": "gatework.study.spec",
    "StudyOutcome": "gatework.study.engine",
    "StudySpec": "gatework.study.spec",
    "expand_grid": "gatework.study.plan",
    "run_study": "gatework.study.engine",
    "write_atomically": "gatework.files",
}

__all__ = [
    "Quality",
    "ResultStore",
    "RunSpec",
    "Study",
    "StudyError",
    "StudyOutcome",
    "StudySpec",
    "expand_grid",
    "run_study",
    "write_atomically",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gatework.study' has no attribute {name!r}")
