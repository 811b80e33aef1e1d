"""Quality against size, with published results beside it where there are any."""

from __future__ import annotations

from typing import Any

from gatework.page.quantities import capitalised
from gatework.study.sections.published import PublishedCurve, published_caption, published_curves
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Summary

#: What symbols and bars of qualities mean.
SEEDS_TEXT = "Symbols are means over seeds; bars reach from the worst to the best seed."


class QualitySection(Section):
    """One line of qualities per candidate, against the size; a row of dots if there is one size."""

    name = "quality"
    script = "quality.js"

    def html(self) -> str:
        """Return the figure."""
        summary, declared = self.summary, self.summary.declared
        several = len(summary.sizes) > 1
        sized, named = declared.sizes.name, declared.candidates.name
        # Without its unit: "image size (pixels)".
        size_title, _, _ = declared.sizes.title.partition(" (")
        title = f"Does a larger {size_title} help?" if several else f"How good is each {named}?"
        where = f"against {size_title}" if several else f"at {sized} {summary.sizes[0]}"
        panels = ", one panel per setting" if len(summary.settings) > 1 else ""
        curves = published_curves(summary)
        published = f" {published_caption(summary, curves)}" if curves else ""
        caption = (
            f"{direction_text(summary)}, {where}{panels}. {SEEDS_TEXT}{crosses_text(summary)} "
            f"{_rates_text(summary)}{published}"
        )
        return figure_html("quality", title, caption, view=sized)

    def data(self) -> dict[str, Any]:
        """Return the published curves; the rest is on every page."""
        return {"published": [self._published(curve) for curve in published_curves(self.summary)]}

    def _published(self, curve: PublishedCurve) -> dict[str, Any]:
        summary = self.summary
        named = {size: f", {summary.declared.sizes.name} {size}" for size in curve.sizes}
        return {
            "series": summary.candidates.index(curve.candidate),
            "setting": summary.settings.index(curve.setting),
            "sizes": list(curve.sizes),
            "values": list(curve.values),
            "hover": [
                [
                    f"{curve.model}, as published{named[size] if len(summary.sizes) > 1 else ''}",
                    curve.setting,
                    f"{summary.quality.name} {value:.2f}, read off the paper's figure",
                ]
                for size, value in zip(curve.sizes, curve.values, strict=True)
            ],
        }


def direction_text(summary: Summary) -> str:
    """Write the quality and its direction, as at the beginning of a sentence."""
    return f"{capitalised(summary.quality.name)}, {summary.quality.better} is better"


def crosses_text(summary: Summary) -> str:
    """Say what crosses at the edge of a figure are, if there are any."""
    return " A cross at the edge marks where a seed diverged." if summary.unstable else ""


def _rates_text(summary: Summary) -> str:
    if summary.has_rate_choice:
        return (
            "Learning rates were chosen on validation data; the qualities are of test data that nothing was "
            "selected on."
        )
    return "Qualities are of test data; learning rates were fixed beforehand."
