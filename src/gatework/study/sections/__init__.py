"""What the page of a study shows, one file per section.

Every page has the general sections below; a task names those that it brings beside them
(:attr:`gatework.tasks.declaration.Declaration.sections`), and a plugin may bring sections of its own.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from gatework.registry import loaded_plugins
from gatework.tasks.declaration import Declaration

if TYPE_CHECKING:
    from gatework.study.sections.section import Section

#: The sections of every page, in its order; None is where those of the task come.
GENERAL: tuple[str | None, ...] = ("quality", None, "costs", "scaling", "curves", "candidates", "runs")

#: Names that a task may declare, and where those sections are.
SECTIONS: dict[str, str] = {
    "quality": "gatework.study.sections.quality:QualitySection",
    "costs": "gatework.study.sections.costs:CostsSection",
    "scaling": "gatework.study.sections.scaling:ScalingSection",
    "curves": "gatework.study.sections.curves:CurvesSection",
    "candidates": "gatework.study.sections.candidates:CandidatesSection",
    "runs": "gatework.study.sections.runs:RunsSection",
    "recall_gap": "gatework.study.sections.recall_gap:RecallGapSection",
    "recall_prediction": "gatework.study.sections.recall_prediction:RecallPredictionSection",
}


def page_sections(declared: Declaration) -> list[type[Section]]:
    """Return the sections of a page in its order: the general ones, with those of the task among them."""
    names: list[str] = []
    for name in GENERAL:
        names += declared.sections if name is None else [name]
    return _loaded(names)


def sections_of(declared: Declaration) -> list[type[Section]]:
    """Return the sections that a task brings."""
    return _loaded(declared.sections)


def left_out(declared: Declaration) -> list[str]:
    """Return the sections of a task that are in plugins which this process has not loaded.

    A page can be written without them: what a file names is not imported.
    """
    return [name for name in declared.sections if name not in SECTIONS and not _is_loaded(name)]


def _loaded(names: list[str] | tuple[str, ...]) -> list[type[Section]]:
    return [_load(name) for name in names if name in SECTIONS or _is_loaded(name)]


def _load(name: str) -> type[Section]:
    from gatework.study.sections.section import Section

    module, _, attribute = SECTIONS.get(name, name).partition(":")
    home = importlib.import_module(module) if name in SECTIONS else sys.modules[module]
    kind = getattr(home, attribute, None)
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        raise TypeError(f"section {name!r} must be a subclass of gatework.study.sections.section.Section")
    return kind


def _is_loaded(name: str) -> bool:
    """Whether a section ``"module:Class"`` is of a plugin that the user has named."""
    module = name.partition(":")[0]
    return module in loaded_plugins() and module in sys.modules
