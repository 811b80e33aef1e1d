"""Two sections of a text study's page: where its gap to attention lies, and whether recall predicts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from gatework.page.frame import fill_template, list_html
from gatework.page.quantities import format_difference, log_axis
from gatework.study.gap_answer import gap_caveats, hits_text, listed, share_text
from gatework.study.page_data import describe_cell, triple
from gatework.study.published import PublishedGap, published_gaps
from gatework.study.recall_gap import GapCell, TextGap, capped
from gatework.study.recall_prediction import (
    Prediction,
    PredictionPoint,
    describe_recall,
    prediction_sentences,
)
from gatework.study.summary import Spread

_PACKAGE = "gatework.study"
_HOW_TO = (
    "No recall study accompanies this one: the same command with --recall '{}', or with recall: {} in its "
    "YAML file, trains the same mixers on recall as well."
)


def gap_html(gap: TextGap) -> str:
    """Return the section of where the gap lies; nothing if no run told AR hits from other tokens."""
    if not gap.has_slices:
        return ""
    words = {"caption": escape(_caption(gap)), "notes": list_html(_notes(gap))}
    return fill_template(_PACKAGE, "gap_figure.html", words)


def _caption(gap: TextGap) -> str:
    """What is drawn of the gap, and what bars and symbols mean."""
    seeds = "Symbols are means over seeds; bars reach from the worst to the best seed"
    cross = "A cross marks a mixer of which a seed diverged."
    perplexities = (
        f"AR hits are {hits_text(gap)}. {'First the' if gap.base else 'The'} perplexity on them against that "
        "on all other tokens; on the dashed line the two are equal."
    )
    if gap.base is None:
        return f"{perplexities} {seeds}. {cross}"
    caption = (
        f"{perplexities} Then the gap to {gap.base} in nats per token of the whole text, as what AR hits "
        f"(filled) and the other tokens (pale) contribute, and the share of AR hits in it. {seeds}, each "
        f"against the mean of the seeds of {gap.base}. The share of a gap is at most 100%; where a mixer is "
        f"not clearly worse than {gap.base}, there is none. {cross}"
    )
    if not published_gaps(gap.summary):
        return caption
    return (
        f"{caption} Hollow symbols are published shares (arXiv:2312.04927), of models with about 160 and 360 "
        "million parameters, trained on 10 billion tokens of the Pile: compare order, not numbers."
    )


def prediction_html(gap: TextGap, prediction: Prediction | None) -> str:
    """Return the section of whether recall predicts the gap, or how to find out; nothing without slices."""
    if prediction is None:
        if not gap.has_slices:
            return ""
        return fill_template(_PACKAGE, "prediction_missing.html", {"how": escape(_HOW_TO)})
    setting, width = gap.focus
    where = f"at width {width}" + (f" in {setting}" if len(gap.summary.settings) > 1 else "")
    recall = prediction.recall
    over = f", mean over its {len(recall.settings)} settings" if len(recall.settings) > 1 else ""
    reached = f"at width {width}" if width in recall.widths else "at the width where it is best"
    hits = " One panel has the whole gap, one the gap on AR hits alone." if gap.has_slices else ""
    caption = (
        f"Each point is a mixer: its {recall.quality.name} in the recall study beside this one{over}, "
        f"{reached}, to the right; its gap to {gap.base or 'attention'} on text {where} upwards.{hits} If "
        "recall predicts the gap, points fall from the upper left to the lower right. Bars reach from the "
        "worst to the best seed."
    )
    words = {
        "caption": escape(caption),
        "answer": escape(" ".join(prediction_sentences(prediction))),
        "notes": list_html(_prediction_notes(prediction)),
    }
    return fill_template(_PACKAGE, "prediction_figure.html", words)


def gap_data(gap: TextGap, prediction: Prediction | None) -> dict[str, Any] | None:
    """Collect what the script of both sections draws; None if there is neither."""
    if not gap.has_slices and prediction is None:
        return None
    summary = gap.summary
    hits = [spread for cell in gap.cells if (spread := cell.perplexity("ar_hits"))]
    others = [spread for cell in gap.cells if (spread := cell.perplexity("other"))]
    gaps = [spread for cell in gap.cells for spread in (cell.gap(), cell.on_hits, cell.on_rest)]
    shares = [spread for cell in gap.cells if (spread := cell.share)]
    return {
        "base": gap.base,
        "slices": gap.has_slices,
        "axes": {
            "hits": _perplexity_axis(hits, "perplexity on AR hits"),
            "other": _perplexity_axis(others, "perplexity on other tokens"),
        },
        "gap_range": _range(gaps),
        "share_range": [min([0.0, *(spread.low for spread in shares)]) - 0.04, 1.12],
        "cells": [_cell(gap, cell) for cell in gap.cells],
        "published": [
            _published(summary.mixers.index(mixer), entry)
            for mixer, entries in (published_gaps(summary) if gap.base else {}).items()
            for entry in entries
        ],
        "prediction": None if prediction is None else _prediction(prediction),
    }


def _cell(gap: TextGap, cell: GapCell) -> dict[str, Any]:
    """One point of the perplexities, and one row of the gaps."""
    summary, spread = gap.summary, cell.gap()
    share = cell.share
    shown = None if share is None else [capped(value) for value in (share.mean, share.low, share.high)]
    return {
        "series": summary.mixers.index(cell.cell.mixer),
        "setting": summary.settings.index(cell.cell.setting),
        "width": cell.cell.width,
        "status": cell.status,
        "hits": triple(cell.perplexity("ar_hits")),
        "other": triple(cell.perplexity("other")),
        "gap": triple(spread),
        "on_hits": None if cell.on_hits is None else cell.on_hits.mean,
        "on_rest": None if cell.on_rest is None else cell.on_rest.mean,
        "share": shown,
        "text": _row_text(cell),
        "hover": [*describe_cell(summary, cell.cell), *_gap_lines(gap, cell)],
    }


def _row_text(cell: GapCell) -> str:
    """What stands at the end of a row of the gaps."""
    if cell.status == "gap":
        return "" if cell.share is None else share_text(cell.share.mean)
    return {"no gap": "no gap", "diverged": "diverged", "base": "base"}.get(cell.status, "")


def _gap_lines(gap: TextGap, cell: GapCell) -> list[str]:
    """Describe the gap in lines."""
    if cell.status == "base":
        return ["all gaps are measured from this"]
    spread = cell.gap()
    if spread is None:
        return []
    lines = [f"gap to {gap.base} {_difference(spread)} nats per token"]
    if cell.status == "no gap":
        lines[0] += ": not clearly worse"
    for name, part in (("AR hits", cell.on_hits), ("other tokens", cell.on_rest)):
        if part is not None:
            lines.append(f"of which {name} {_difference(part)}")
    alone = cell.gap("ar_hits")
    if alone is not None:
        lines.append(f"gap on AR hits alone {_difference(alone)} nats per hit")
    if cell.share is not None:
        lines.append(_share_line(cell.share))
    return lines


def _share_line(share: Spread) -> str:
    text = f"share on AR hits {share_text(share.mean)}"
    if share.count > 1:
        text += f" ({share_text(share.low)} to {share_text(share.high)}, {share.count} seeds)"
    above = max(share.mean, share.high)
    return text if above <= 1 else f"{text}; not capped, the mean is {100 * share.mean:.0f}%"


def _difference(spread: Spread) -> str:
    text = format_difference(spread.mean)
    if spread.count < 2:
        return f"{text} (one seed)"
    return (
        f"{text} ({format_difference(spread.low)} to {format_difference(spread.high)}, {spread.count} seeds)"
    )


def _published(series: int, entry: PublishedGap) -> dict[str, Any]:
    overall, hits, others = entry.perplexity
    return {
        "series": series,
        "share": entry.share,
        "hover": [
            f"{entry.model}, {entry.parameters} million parameters, as published",
            f"share on AR hits {100 * entry.share:.1f}%",
            f"perplexity {overall}, on AR hits {hits}, on other tokens {others}",
        ],
    }


def _prediction(prediction: Prediction) -> dict[str, Any]:
    recall, slices = prediction.recall, prediction.gap.has_slices
    points = prediction.points
    to = f"gap to {prediction.gap.base or 'attention'} in nats per"
    panels: list[dict[str, Any]] = [_panel("The whole gap", f"{to} token", "overall", points)]
    if slices:
        panels.append(_panel("The gap on AR hits", f"{to} AR hit", "ar_hits", points))
    low, high = recall.quality.range or (0.0, 1.0)
    if recall.quality.range is None:
        values = [value for point in points for value in (point.recall.low, point.recall.high)]
        low, high = (min(values), max(values)) if values else (low, high)
    pad = 0.05 * (high - low) or 0.5
    return {
        "x_title": f"{recall.quality.name} on recall",
        "x_range": [low - pad, high + pad],
        "panels": panels,
        "points": [
            {
                "series": prediction.gap.summary.mixers.index(point.mixer),
                "base": point.gap_cell.status == "base",
                "recall": triple(point.recall),
                "overall": triple(point.gap("overall")),
                "ar_hits": triple(point.gap("ar_hits")),
                "hover": _point_lines(prediction, point),
            }
            for point in points
        ],
    }


def _panel(title: str, axis: str, name: Any, points: Iterable[PredictionPoint]) -> dict[str, Any]:
    spreads = [point.gap(name) for point in points]
    return {"title": f"{title} against recall", "y_title": axis, "key": name, "y_range": _range(spreads)}


def _point_lines(prediction: Prediction, point: PredictionPoint) -> list[str]:
    lines = [point.mixer, describe_recall(point, prediction.recall)]
    return [*lines, *_gap_lines(prediction.gap, point.gap_cell)]


def _range(spreads: Iterable[Spread | None]) -> list[float]:
    """The range of an axis that holds zero and all of the spreads."""
    values = [value for spread in spreads if spread for value in (spread.low, spread.high)]
    low, high = min([0.0, *values]), max([0.0, *values])
    pad = 0.08 * (high - low) or 0.05
    return [low - pad, high + pad]


def _perplexity_axis(spreads: Iterable[Spread], title: str) -> dict[str, Any]:
    values = [value for spread in spreads for value in (spread.low, spread.high)]
    return log_axis(values, title, _tick, 10)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _notes(gap: TextGap) -> Sequence[str]:
    """What limits the figure."""
    if gap.base is None:
        return ["No mixer of this study is attention in all of its layers: without it there is no gap."]
    return gap_caveats(gap)


def _prediction_notes(prediction: Prediction) -> list[str]:
    """What the recall study is, and who is not in the figure."""
    recall = prediction.recall
    seeds = len({run.spec.seed for run in recall.runs})
    settings = ", ".join(recall.settings)
    notes = [
        f"Recall: {recall.count('finished')} of {len(recall.runs)} runs finished, {seeds} "
        f"seed{'s' * (seeds != 1)}, {settings}; its own page is report.html in this study's folder recall."
    ]
    if prediction.left_out:
        plural = "are" if len(prediction.left_out) > 1 else "is"
        notes.append(
            f"{listed(prediction.left_out)} {plural} left out: one of the two studies has no result of every "
            "seed and setting."
        )
    return notes
