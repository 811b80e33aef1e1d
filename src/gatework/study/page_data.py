"""What all figures of a study's page share, as one JSON value; each section adds its own below ``sections``.

Every number that people read is written in Python (:mod:`gatework.page.quantities`); the page's scripts only
place it. Candidates, settings and cells are referred to by their position in the grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gatework.page.quantities import FORMATS, NOT_MEASURED, format_quality, format_rate, log_axis
from gatework.study.answer import describe_spread, quality_unit
from gatework.study.improving import is_improving
from gatework.study.summary import STATUSES, Cell, Run, Spread, Summary
from gatework.tasks.candidates import definition_text
from gatework.tasks.declaration import Declaration
from gatework.tasks.task import Quality

if TYPE_CHECKING:
    from gatework.study.sections.section import Section


def page_data(summary: Summary, sections: Sequence[Section]) -> dict[str, Any]:
    """Collect what the page's scripts draw: plain JSON, without a number that is not finite."""
    found = {section.name: section.data() for section in sections}
    return {
        "name": summary.study.name,
        "words": words_data(summary.declared),
        "quality": quality_data(summary.quality, summary.cells),
        "series": series_data(summary, summary.candidates),
        "settings": summary.settings,
        "sizes": summary.sizes,
        "clearest_setting": summary.clearest_setting,
        "cells": [_cell(summary, cell, sections) for cell in summary.cells],
        "sections": {name: data for name, data in found.items() if data is not None},
    }


def words_data(declared: Declaration) -> dict[str, str]:
    """Return the words of a task that scripts write, and name their controls by."""
    return {
        "candidate": declared.candidates.name,
        "size": declared.sizes.name,
        "sizes": declared.sizes.plural,
        "size_title": declared.sizes.title,
        "definition": declared.definition,
    }


def series_data(summary: Summary, candidates: Iterable[str]) -> list[dict[str, str]]:
    """Describe what the legend lists."""
    return [{"name": name, "about": definition_text(summary.definitions[name])} for name in candidates]


def quality_title(quality: Quality) -> str:
    """Write the name of a quality as an axis shows it, with its unit and direction."""
    unit = quality_unit(quality)
    return f"{quality.name} ({f'{unit}, ' if unit else ''}{quality.better} is better)"


def quality_data(quality: Quality, cells: Iterable[Cell]) -> dict[str, Any]:
    """Describe the headline number to the page's script, with an axis range that holds all ``cells``."""
    values = [value for cell in cells if cell.quality for value in (cell.quality.low, cell.quality.high)]
    if quality.range is not None:
        low, high = quality.range
    else:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return {
        "name": quality.name,
        "title": quality_title(quality),
        "better": quality.better,
        "chance": quality.chance,
        "chance_text": f"chance {format_quality(quality.chance)}",
        "bounded": quality.range is not None,
        "range": [low - pad, high + pad],
    }


def spread_axis(spreads: Iterable[Spread | None], title: str, written: str) -> dict[str, Any]:
    """Describe a logarithmic axis that holds some spreads: its range, as exponents of ten, and its ticks.

    Args:
        spreads: What it must hold, the same in every selection.
        title: Its title.
        written: How its numbers are written, one of :data:`~gatework.page.quantities.FORMATS`.
    """
    write, base = FORMATS[written]
    ends = [value for spread in spreads if spread for value in (spread.low, spread.high)]
    return log_axis(ends, title, write, base)


def cell_title(summary: Summary, cell: Cell) -> str:
    """Name a cell without its setting: ``hornet, size 64``."""
    return f"{cell.candidate}, {summary.declared.sizes.name} {cell.size}"


def describe_cell(summary: Summary, cell: Cell, sections: Sequence[Section] = ()) -> list[str]:
    """Describe a cell in lines, of which the first is a title and the second its setting.

    Args:
        summary: The study.
        cell: One of its cells.
        sections: Sections that may know more of it.
    """
    lines = [cell_title(summary, cell), cell.setting]
    if cell.quality:
        described = describe_spread(cell.quality, quality_unit(summary.quality))
        lines.append(f"{summary.quality.name} {described}")
        if cell.quality.std is not None:
            lines.append(f"standard deviation {format_quality(cell.quality.std)}")
    if is_improving(cell.runs, summary.quality):
        lines.append("still improving when its budget ended")
    for section in sections:
        lines += section.cell_lines(cell)
    lines += [
        f"{count} of {len(cell.runs)} seeds {status}"
        for status in STATUSES[1:]
        if (count := cell.count(status))
    ]
    return [*lines, f"learning rate {cell.learning_rate:g}{_chosen(cell)}", *_cost_lines(summary, cell)]


def triple(spread: Spread | None) -> list[float] | None:
    """Mean, worst and best of a spread, as the page's script reads it."""
    return None if spread is None else [spread.mean, spread.low, spread.high]


def positive(spread: Spread | None) -> list[float] | None:
    """The same, None where a logarithmic axis could not show it."""
    return triple(spread) if spread is not None and spread.mean > 0 else None


def environment_text(environment: Mapping[str, Any] | None) -> str:
    """Write an environment on one line: ``torch 2.9.0, threads 1``."""
    return ", ".join(f"{name} {value}" for name, value in (environment or {}).items()) or NOT_MEASURED


def environments(runs: Sequence[Run]) -> list[str]:
    """Write each distinct environment in which a run was measured, in the order of the grid."""
    found = [environment_text((run.result or {}).get("environment")) for run in runs]
    return [text for text in dict.fromkeys(found) if text != NOT_MEASURED]


def _cell(summary: Summary, cell: Cell, sections: Sequence[Section]) -> dict[str, Any]:
    return {
        "series": summary.candidates.index(cell.candidate),
        "setting": summary.settings.index(cell.setting),
        "size": cell.size,
        "quality": triple(cell.quality),
        "diverged": cell.count("diverged"),
        "hover": describe_cell(summary, cell, sections),
    }


def _cost_lines(summary: Summary, cell: Cell) -> list[str]:
    """Write every cost that is known of a cell."""
    declared = summary.declared
    lines = [
        f"{cost.title} {FORMATS[cost.format][0](spread.mean)}"
        for cost in declared.all_costs
        if (spread := cell.cost(cost.key))
    ]
    if rate := cell.cost(declared.unit.rate):
        lines.append(format_rate(rate.mean, declared.unit.plural))
    return lines


def _chosen(cell: Cell) -> str:
    """Write what a learning rate was chosen from."""
    if cell.num_rates == 1:
        return ""
    passed_over = f" ({cell.num_unstable_rates} diverged)" if cell.num_unstable_rates else ""
    return f", best of {cell.num_rates} on validation data{passed_over}"
