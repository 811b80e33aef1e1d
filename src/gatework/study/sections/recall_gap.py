"""What a study on text says of its gap to attention: how much of it lies on AR hits, and what closes it.

The section of its page, and the sentences of its answer; what is measured is in
:mod:`gatework.study.sections.recall_gap_cells`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from gatework.page.quantities import format_difference, format_quality, listed, log_axis
from gatework.study.answer import describe_spread
from gatework.study.page_data import triple
from gatework.study.sections.published import PublishedGap, published_gaps
from gatework.study.sections.recall_gap_cells import (
    BASE,
    VISIBLE,
    GapCell,
    SliceName,
    TextGap,
    capped,
    layer_names,
    perplexity,
    text_gap,
)
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Cell, Spread

#: What a line says of the perplexity on each slice.
_PERPLEXITY_NAMES: dict[SliceName, str] = {
    "overall": "",
    "ar_hits": "on AR hits ",
    "other": "on other tokens ",
}


class RecallGapSection(Section):
    """Where the gap to attention lies: perplexities, the gap by its parts, and the share on AR hits."""

    name = "recall_gap"
    script = "recall_gap.js"
    table_columns: ClassVar[Mapping[str, str]] = {
        "perplexity ar_hits": "perplexity AR hits",
        "perplexity other": "perplexity other",
    }

    @cached_property
    def gap(self) -> TextGap:
        """The gaps of every cell."""
        return text_gap(self.summary)

    def html(self) -> str:
        """Return the figure; nothing if no run told AR hits from other tokens."""
        if not self.gap.has_slices:
            return ""
        return figure_html("gap", "Where is the text gap?", _caption(self.gap), notes=_notes(self.gap))

    def data(self) -> dict[str, Any] | None:
        """Return what the figure draws, with an entry for each cell of the page."""
        gap = self.gap
        if not gap.has_slices:
            return None
        hits = [spread for cell in gap.cells if (spread := cell.perplexity("ar_hits"))]
        others = [spread for cell in gap.cells if (spread := cell.perplexity("other"))]
        gaps = [spread for cell in gap.cells for spread in (cell.gap(), cell.on_hits, cell.on_rest)]
        shares = [spread for cell in gap.cells if (spread := cell.share)]
        published = published_gaps(gap.summary) if gap.base else {}
        return {
            "base": gap.base,
            "axes": {
                "hits": _perplexity_axis(hits, "perplexity on AR hits"),
                "other": _perplexity_axis(others, "perplexity on other tokens"),
            },
            "gap_range": gap_range(gaps),
            "share_range": [min([0.0, *(spread.low for spread in shares)]) - 0.04, 1.12],
            "cells": [_cell(gap, cell) for cell in gap.cells],
            "published": [
                _published(gap.summary.candidates.index(mixer), entry)
                for mixer, entries in published.items()
                for entry in entries
            ],
        }

    def findings(self) -> list[str]:
        """Say where the gap lies, and what closes it."""
        return gap_sentences(self.gap)

    def protocol(self) -> dict[str, str]:
        """Define AR hits, where they were told apart."""
        return {"AR hits": hits_text(self.gap)} if self.gap.has_slices else {}

    def cell_lines(self, cell: Cell) -> list[str]:
        """Write the perplexities of a cell whose tokens were split into AR hits and others."""
        found = {
            name: Spread.of(perplexity(run.loss(name)) for run in cell.runs) for name in _PERPLEXITY_NAMES
        }
        return [
            f"perplexity {_PERPLEXITY_NAMES[name]}{describe_spread(spread)}"
            for name, spread in found.items()
            if spread is not None and found["ar_hits"] is not None
        ]

    def cell_columns(self) -> list[dict[str, float | None]]:
        """Return perplexities and, in nats per token, the gap; means, unrounded and not capped."""
        return [_columns(cell) for cell in self.gap.cells] if self.gap.has_slices else []

    @staticmethod
    def run_columns(metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """Return the perplexities of a run whose slices are losses on AR hits and on other tokens."""
        if metrics.get("ar_share") is None:
            return {}
        slices: Mapping[str, float | None] = metrics.get("slices") or {}
        return {
            "perplexity": perplexity(metrics["loss"]),
            **{f"perplexity {name}": perplexity(value) for name, value in slices.items()},
        }


def gap_sentences(gap: TextGap) -> list[str]:
    """Say where the gap lies, which mixer has the largest and which comes closest; nothing without slices."""
    if not gap.has_slices:
        return []
    if gap.base is None:
        return ["No mixer is attention in all of its layers, so there is no gap to attention to explain."]
    if not gap.of_status("base"):
        return [
            f"{gap.base} has no finished result without a diverged seed{_where(gap)}, so no gap is known."
        ]
    behind = sorted(gap.of_status("gap"), key=_gap, reverse=True)
    if not behind:
        return [
            f"No mixer is clearly worse than {gap.base} on text{_where(gap)}: there is no gap to explain."
        ]
    return [*_share_sentences(gap, behind), _largest_sentence(gap, behind), *_closest_sentences(gap)]


def gap_caveats(gap: TextGap) -> list[str]:
    """Say which mixers have no gap, and why."""
    if not gap.has_slices or not gap.of_status("base"):
        return []
    found = []
    ahead = [cell for cell in gap.of_status("no gap") if is_ahead(cell)]
    if none := [cell for cell in gap.of_status("no gap") if not is_ahead(cell)]:
        found.append(f"Not clearly worse than {gap.base} on text, so no gap: {listed(names(none))}.")
    if ahead:
        found.append(f"Better than {gap.base} on text, so no gap: {listed(names(ahead))}.")
    if lost := gap.of_status("diverged"):
        found.append(f"Without a gap, because a seed diverged: {listed(names(lost))}.")
    return found


def share_text(share: float) -> str:
    """Write the share of a gap, 100% at most: ``82%``."""
    return f"{capped(share):.0%}".replace("-", "−")


def hits_text(gap: TextGap) -> str:
    """Write what AR hits are in this study: their rule and their share of the tokens."""
    counts = " or ".join(f"{count:,}" for count in gap.max_train_counts)
    times = "once" if counts == "1" else f"{counts} times"
    most = f" that occurs at most {times} in the training text" if counts else ""
    share = "" if gap.ar_share is None else f"; {percent(gap.ar_share)} of the test tokens are such hits"
    return f"tokens that complete a bigram{most} and that their context has shown before{share}"


def percent(share: float) -> str:
    """Write a share of tokens with one decimal: ``6.4%``."""
    return f"{share:.1%}"


def names(cells: Sequence[GapCell]) -> list[str]:
    """Return the labels of the cells' mixers."""
    return [cell.cell.candidate for cell in cells]


def nats(value: float) -> str:
    """Write a gap with its unit."""
    return f"{format_quality(value)} nats per token"


def _share_sentences(gap: TextGap, behind: Sequence[GapCell]) -> list[str]:
    share = gap.mean_share
    if share is None:
        return []
    who = f"the {len(behind)} mixers that are" if len(behind) > 1 else "the one mixer that is"
    average = "average gap" if len(behind) > 1 else "gap"
    tokens = "" if gap.ar_share is None else f", which are {percent(gap.ar_share)} of the tokens"
    return [
        f"On text, {share_text(share)} of the {average} to {gap.base} of {who} clearly worse{_where(gap)} "
        f"lies on AR hits{tokens}."
    ]


def _largest_sentence(gap: TextGap, behind: Sequence[GapCell]) -> str:
    worst = behind[0]
    on_hits = f", {share_text(worst.share.mean)} of it on AR hits" if worst.share else ""
    return f"{worst.cell.candidate} has the largest: {nats(_gap(worst))}{on_hits}."


def _closest_sentences(gap: TextGap) -> list[str]:
    """Name the smallest gap among the mixers that are not attention alone, and among the hybrids with it."""
    others = [
        cell
        for cell in [*gap.of_status("gap"), *gap.of_status("no gap")]
        if {*layer_names(cell.cell)} != {BASE}
    ]
    if len(others) < 2:
        return []
    best = min(others, key=_gap)
    hybrid = min((cell for cell in others if BASE in layer_names(cell.cell)), key=_gap, default=None)
    kind = "the hybrid " if best is hybrid else ""
    if is_ahead(best):
        sentence = f"Ahead of {gap.base} by {nats(-_gap(best))} is {kind}{best.cell.candidate}"
    else:
        left = nats(max(_gap(best), 0.0))
        sentence = f"Closest to {gap.base} comes {kind}{best.cell.candidate}, with a gap of {left}"
    if best is hybrid or hybrid is None:
        return [f"{sentence}{_closed(gap, best)}."]
    of_hybrids = f"Of the hybrids with attention, {hybrid.cell.candidate} is the best, with a gap of"
    return [f"{sentence}.", f"{of_hybrids} {nats(_gap(hybrid))}{_closed(gap, hybrid)}."]


def is_ahead(cell: GapCell) -> bool:
    """Whether every seed is better than every seed of the base, by a visible amount."""
    mine = cell.loss("overall")
    base = None if cell.base is None else Spread.of(run.loss() for run in cell.base.runs)
    return mine is not None and base is not None and mine.high < base.low and _gap(cell) <= -VISIBLE


def _closed(gap: TextGap, hybrid: GapCell) -> str:
    """How much of the gap of what the hybrid would be without its attention layers it closes."""
    rest = {name for name in layer_names(hybrid.cell) if name != BASE}
    without = next((cell for cell in gap.of_status("gap") if {*layer_names(cell.cell)} == rest), None)
    if without is None or without is hybrid:
        return ""
    return f": it closes {share_text(1 - _gap(hybrid) / _gap(without))} of that of {without.cell.candidate}"


def _where(gap: TextGap) -> str:
    """Width and setting that the words are of, as far as there are several."""
    setting, width = gap.focus
    at = f" at width {width}" if len(gap.summary.sizes) > 1 else ""
    return f"{at} in {setting}" if len(gap.summary.settings) > 1 else at


def _gap(cell: GapCell) -> float:
    spread = cell.gap()
    assert spread is not None
    return spread.mean


def _columns(cell: GapCell) -> dict[str, float | None]:
    spreads = {
        "perplexity": cell.perplexity("overall"),
        "perplexity ar_hits": cell.perplexity("ar_hits"),
        "perplexity other": cell.perplexity("other"),
        "gap": cell.gap(),
        "gap ar_hits": cell.gap("ar_hits"),
        "gap other": cell.gap("other"),
        "gap_share": cell.share,
    }
    means = {name: None if spread is None else spread.mean for name, spread in spreads.items()}
    return means | {"ar_share": cell.ar_share}


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


def _cell(gap: TextGap, cell: GapCell) -> dict[str, Any]:
    """One point of the perplexities and one row of the gaps, of the page's cell at the same position."""
    spread, share = cell.gap(), cell.share
    shown = None if share is None else [capped(value) for value in (share.mean, share.low, share.high)]
    return {
        "status": cell.status,
        "hits": triple(cell.perplexity("ar_hits")),
        "other": triple(cell.perplexity("other")),
        "gap": triple(spread),
        "on_hits": None if cell.on_hits is None else cell.on_hits.mean,
        "on_rest": None if cell.on_rest is None else cell.on_rest.mean,
        "share": shown,
        "text": _row_text(cell),
        "lines": gap_lines(gap, cell),
    }


def _row_text(cell: GapCell) -> str:
    """What stands at the end of a row of the gaps."""
    if cell.status == "gap":
        return "" if cell.share is None else share_text(cell.share.mean)
    return {"no gap": "no gap", "diverged": "diverged", "base": "base"}.get(cell.status, "")


def gap_lines(gap: TextGap, cell: GapCell) -> list[str]:
    """Describe the gap of a cell in lines."""
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


def gap_range(spreads: Iterable[Spread | None]) -> list[float]:
    """Return the range of an axis that holds zero and all of the spreads."""
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
