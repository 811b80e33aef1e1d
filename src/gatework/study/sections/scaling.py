"""What was measured of the trained models at growing points: one figure for each scaling of the task."""

from __future__ import annotations

from typing import Any

from gatework.page.quantities import FORMATS, log_axis
from gatework.study.page_data import cell_title, positive, spread_axis
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Cell
from gatework.tasks.declaration import Scaling, ScalingCurve


class ScalingSection(Section):
    """A figure per scaling that was measured or is still to be; a panel per curve of it."""

    name = "scaling"
    script = "scaling.js"

    def html(self) -> str:
        """Return the figures."""
        return "".join(
            figure_html(
                scaling.key,
                scaling.question or f"How does {scaling.key} scale?",
                scaling.caption,
                is_wide=True,
                notes=self._ends(scaling),
            )
            for scaling in self._scalings()
        )

    def data(self) -> dict[str, Any] | None:
        """Return every figure with its panels, and what was measured for each cell of the page."""
        figures = [self._figure(scaling) for scaling in self._scalings()]
        return {"figures": figures} if figures else None

    def _scalings(self) -> list[Scaling]:
        """Those that have a figure."""
        summary = self.summary
        return [
            scaling
            for scaling in summary.declared.scalings
            if summary.points(scaling) or any(run.spec.measure.get(scaling.option) for run in summary.runs)
        ]

    def _ends(self, scaling: Scaling) -> list[str]:
        """Say which lines end early, and why."""
        ends: dict[str, None] = {}
        for cell in self.summary.cells:
            for run in cell.runs:
                if reason := run.stopped(scaling):
                    ends[f"{cell.candidate} goes no further in {cell.setting}: {reason}."] = None
        return list(ends)

    def _figure(self, scaling: Scaling) -> dict[str, Any]:
        points = self.summary.points(scaling)
        title = scaling.title or scaling.point
        return {
            "key": scaling.key,
            "points": points,
            "axis": log_axis(points, title, "{:,.0f}".format, 2),
            "panels": [self._panel(scaling, curve) for curve in scaling.curves],
            "lines": [self._line(scaling, cell) for cell in self.summary.cells],
        }

    def _panel(self, scaling: Scaling, curve: ScalingCurve) -> dict[str, Any]:
        spreads = [spread for cell in self.summary.cells for spread in cell.scaling(scaling, curve).values()]
        return {
            "title": curve.heading,
            "axis": spread_axis(spreads, curve.title, curve.format),
            "is_timed": curve.is_timed,
        }

    def _line(self, scaling: Scaling, cell: Cell) -> list[dict[str, Any]]:
        """The points of one cell, each with a value per panel."""
        curves = [(curve, cell.scaling(scaling, curve)) for curve in scaling.curves]
        points = sorted({point for _, measured in curves for point in measured})
        return [
            {
                "point": point,
                "values": [positive(measured.get(point)) for _, measured in curves],
                "hover": [
                    cell_title(self.summary, cell),
                    cell.setting,
                    scaling.hover.format(f"{point:,}"),
                    *(
                        curve.hover.format(FORMATS[curve.format][0](measured[point].mean))
                        for curve, measured in curves
                        if point in measured
                    ),
                ],
            }
            for point in points
        ]
