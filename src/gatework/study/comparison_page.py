"""The page that reports one study against another: the same frame as a study's own page, other figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gatework.files import check_file
from gatework.page.frame import assemble_page, write_page
from gatework.page.quantities import (
    NOT_MEASURED,
    capitalised,
    format_difference,
    format_quality,
    format_ratio,
)
from gatework.study.answer import quality_unit
from gatework.study.comparison import VERDICTS, Comparison, Pair, compare_studies, spec_changes
from gatework.study.page_data import (
    cell_title,
    describe_cell,
    environments,
    quality_data,
    series_data,
    triple,
    words_data,
)
from gatework.study.report import read_summary
from gatework.study.sections import sections_of
from gatework.study.summary import Cell, Spread, Summary

COMPARISON_FILE = "comparison.html"
_SCRIPTS = ("study/page/axes.js", "study/page/comparison.js")
#: What a verdict says of study A, in the table and in the counts.
_VERDICT_TEXTS = {
    "better": "A better",
    "worse": "A worse",
    "overlap": "seeds overlap",
    "one seed": "one seed",
    "unknown": "not comparable",
}
# So many cells that only one study has are listed; more are counted.
_MOST_LISTED = 12


def write_comparison(directory: Path, against: Path, output: Path | None = None) -> Path:
    """Write a page that reports the study in ``directory`` against the one in ``against``.

    Args:
        directory: Directory of the study, called A on the page.
        against: Directory of the study it is compared with, called B.
        output: The page; by default ``comparison.html`` in ``directory``.

    Returns:
        The path of the page.

    Raises:
        FileError: If a directory holds no valid study, one of its files is broken, the studies are of
            different tasks or qualities, or the page cannot be written.
    """
    path = directory / COMPARISON_FILE if output is None else output
    if output is not None:
        check_file("output", path)
    comparison = compare_studies(read_summary(directory), read_summary(against))
    write_page(path, render_comparison(comparison))
    return path


def render_comparison(comparison: Comparison) -> str:
    """Return the page of a comparison as one HTML document."""
    one, two = comparison.study.study, comparison.baseline.study
    declared = comparison.study.declared
    title = one.title if one.title == two.title else f"{one.title} / {two.title}"
    return assemble_page(
        "study/page/comparison.html",
        _words(comparison, title),
        title=f"{title}: A against B",
        eyebrow=f"{one.task} · two studies compared · A: {one.name} · B: {two.name}",
        data=comparison_data(comparison),
        scripts=_SCRIPTS,
        series=declared.candidates.plural,
    )


def _words(comparison: Comparison, title: str) -> dict[str, Any]:
    quality, declared = comparison.study.quality, comparison.study.declared
    return {
        "heading": title,
        "answer": _answer(comparison),
        "counts": _counts(comparison),
        "protocol": _protocol(comparison),
        "only": [
            *_only("A", comparison.study, comparison.only_study),
            *_only("B", comparison.baseline, comparison.only_baseline),
        ],
        "candidate": declared.candidates.name,
        "candidates": declared.candidates.plural,
        "size": declared.sizes.name,
        "sizes": declared.sizes.plural,
        "quality": quality.name,
        "capital_quality": capitalised(quality.name),
        "better": "above" if quality.better == "higher" else "below",
        "side": "right" if quality.better == "higher" else "left",
        "changes": _changes(comparison),
    }


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """Collect what the page's script draws: plain JSON, without a number that is not finite."""
    study, baseline = comparison.study, comparison.baseline
    settings = list(dict.fromkeys(pair.study.setting for pair in comparison.pairs))
    cells = [cell for pair in comparison.pairs for cell in (pair.study, pair.baseline)]
    describers = [_describer(study), _describer(baseline)]
    return {
        "name": f"{study.study.name} against {baseline.study.name}",
        "words": words_data(study.declared),
        "quality": quality_data(study.quality, cells),
        "series": series_data(study, comparison.candidates),
        "settings": settings,
        "sizes": sorted({pair.study.size for pair in comparison.pairs}),
        "costs": [{"key": cost, "title": title} for cost, title in comparison.costs.items()],
        "pairs": [_pair(comparison, pair, settings, describers) for pair in comparison.pairs],
    }


def _describer(summary: Summary) -> Callable[[Cell], list[str]]:
    """Describe the cells of a study in lines, without their title and setting."""
    sections = [kind(summary) for kind in sections_of(summary.declared)]
    return lambda cell: describe_cell(summary, cell, sections)[2:]


def _pair(
    comparison: Comparison,
    pair: Pair,
    settings: Sequence[str],
    describers: Sequence[Callable[[Cell], list[str]]],
) -> dict[str, Any]:
    """One row of the table, and one point of each figure."""
    study, baseline, difference = pair.study, pair.baseline, pair.difference
    title, size = cell_title(comparison.study, study), comparison.study.declared.sizes.name
    ratios = {cost: pair.ratio(cost) for cost in comparison.costs}
    values = {
        size: study.size,
        "study": study.quality.mean if study.quality else None,
        "baseline": baseline.quality.mean if baseline.quality else None,
        "difference": difference.mean if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
        "standard_error": difference.std if difference else None,
        "study_rate": study.learning_rate,
        "baseline_rate": baseline.learning_rate,
        **ratios,
    }
    texts = {
        size: str(study.size),
        "study": format_quality(values["study"]),
        "baseline": format_quality(values["baseline"]),
        "difference": _difference_text(difference),
        **{cost: NOT_MEASURED if ratio is None else format_ratio(ratio) for cost, ratio in ratios.items()},
    }
    return {
        "id": f"{title}, {study.setting}",
        "series": comparison.candidates.index(study.candidate),
        "setting": settings.index(study.setting),
        "size": study.size,
        "verdict": pair.verdict,
        "verdict_text": _VERDICT_TEXTS[pair.verdict],
        "quality": [triple(study.quality), triple(baseline.quality)],
        "difference": triple(difference),
        "values": values,
        "texts": texts,
        "hover": [title, study.setting, *_hover(comparison, pair)],
        "details": [describe(cell) for describe, cell in zip(describers, (study, baseline), strict=True)],
        "changes": [list(change) for change in spec_changes(pair, comparison.study.declared)],
    }


def _hover(comparison: Comparison, pair: Pair) -> list[str]:
    lines = [
        f"{label} {format_quality(cell.quality.mean)}" + _range_text(cell.quality)
        for label, cell in (("A", pair.study), ("B", pair.baseline))
        if cell.quality
    ]
    if pair.difference:
        unit = quality_unit(comparison.study.quality)
        lines.append(
            f"difference {format_difference(pair.difference.mean, unit)}: {_VERDICT_TEXTS[pair.verdict]}"
        )
    return lines


def _range_text(spread: Spread) -> str:
    if spread.count < 2:
        return " (one seed)"
    return f" ({format_quality(spread.low)} to {format_quality(spread.high)}, {spread.count} seeds)"


def _difference_text(difference: Spread | None) -> str:
    if difference is None:
        return NOT_MEASURED
    text = format_difference(difference.mean)
    if difference.count < 2:
        return text
    return f"{text} [{format_difference(difference.low)}, {format_difference(difference.high)}]"


def _answer(comparison: Comparison) -> list[str]:
    """The comparison in words, the most important sentence first."""
    number = len(comparison.pairs)
    if not number:
        declared = comparison.study.declared
        common = f"no {declared.candidates.name}, setting and {declared.sizes.name} in common"
        return [f"The two studies have {common}, so there is nothing to compare."]
    cells = f"{number} cell{'s' * (number != 1)} that both studies have"
    better, worse = comparison.count("better"), comparison.count("worse")
    sentences = [f"Of the {cells}, A is better in {better} and worse in {worse}."]
    if overlap := comparison.count("overlap"):
        sentences.append(f"In {overlap} the seeds overlap, so that nothing can be told apart.")
    if single := comparison.count("one seed"):
        sentences.append(f"In {single} a study has one seed, which says little.")
    if unknown := comparison.count("unknown"):
        sentences.append(f"In {unknown} a result is missing or a seed diverged.")
    return [*sentences, *_extremes(comparison), *_costs_sentence(comparison)]


def _extremes(comparison: Comparison) -> list[str]:
    """The largest gain and the largest loss among those that the seeds can tell apart."""
    unit, sized = quality_unit(comparison.study.quality), comparison.study.declared.sizes.name
    sentences = []
    for verdict, word in (("better", "gain"), ("worse", "loss")):
        clear = [
            (pair, pair.difference)
            for pair in comparison.pairs
            if pair.verdict == verdict and pair.difference
        ]
        if clear:
            pair, difference = max(clear, key=lambda entry: abs(entry[1].mean))
            where = f"{pair.study.candidate} at {sized} {pair.study.size} ({pair.study.setting})"
            change = format_difference(difference.mean, unit)
            sentences.append(f"The largest {word} is {change} {comparison.study.quality.name}, of {where}.")
    return sentences


def _costs_sentence(comparison: Comparison) -> list[str]:
    ratios = {title: comparison.median_ratio(cost) for cost, title in comparison.costs.items()}
    known = [f"{format_ratio(ratio)} {title}" for title, ratio in ratios.items() if ratio is not None]
    return [f"Costs of A over those of B, at the median: {', '.join(known)}."] if known else []


def _counts(comparison: Comparison) -> list[tuple[str | None, int, str]]:
    """How many common cells there are, and every verdict that is not zero."""
    number = len(comparison.pairs)
    counts = [
        (verdict.replace(" ", "-"), comparison.count(verdict), _VERDICT_TEXTS[verdict])
        for verdict in VERDICTS
    ]
    return [(None, number, "common cell" + "s" * (number != 1)), *(found for found in counts if found[1])]


def _protocol(comparison: Comparison) -> dict[str, str]:
    return {
        "A": _study_text(comparison.study),
        "B": _study_text(comparison.baseline),
        "Difference": (
            f"A minus B, of {comparison.study.quality.name} on test data; its range is over all pairs of a "
            "seed of A and a seed of B, and holds zero exactly if the seeds overlap"
        ),
    }


def _study_text(summary: Summary) -> str:
    study = summary.study
    seeds = len({run.spec.seed for run in summary.runs})
    rates = "learning rates chosen on validation data" if summary.has_rate_choice else "learning rates fixed"
    return (
        f"{study.name}, {study.created[:10]}: {summary.count('finished')} of {len(summary.runs)} runs "
        f"finished, {seeds} seed{'s' * (seeds != 1)}, {rates}; "
        f"held equal: {study.budget}"
    )


def _changes(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """What differs, a row each: the studies as a whole, then the specifications of common cells."""
    rows = []
    one, two = comparison.study, comparison.baseline
    for name, mine, other in (
        ("command", one.study.command, two.study.command),
        ("held equal", one.study.budget, two.study.budget),
        ("plugins", ", ".join(one.study.plugins) or "none", ", ".join(two.study.plugins) or "none"),
        ("measured with", "; ".join(environments(one.runs)), "; ".join(environments(two.runs))),
    ):
        if mine != other:
            rows.append((name, mine or "unknown", other or "unknown", "study"))
    cells = len(comparison.pairs)
    rows += [
        (
            change.name,
            change.study,
            change.baseline,
            "all cells" if change.count == cells else f"{change.count} of {cells} cells",
        )
        for change in comparison.changes
    ]
    return rows


def _only(label: str, summary: Summary, cells: Sequence[Cell]) -> list[str]:
    """Sentences on the cells that only one study has."""
    if not cells:
        return [f"{label} has no cell that the other lacks."]
    listed = [f"{cell_title(summary, cell)}, {cell.setting}" for cell in cells[:_MOST_LISTED]]
    rest = f"; and {len(cells) - _MOST_LISTED} more" if len(cells) > _MOST_LISTED else ""
    return [f"Only in {label}: {'; '.join(listed)}{rest}."]
