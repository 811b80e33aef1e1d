"""Learning curves: quality and loss on validation data during training, and which were still improving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gatework.page.quantities import capitalised
from gatework.study.improving import describe_rule, finished_curves, is_improving, late_gain
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Run

#: Candidate, setting, size and learning rate: what a strong line is the mean over the seeds of.
_Group = tuple[str, str, int, float]


class CurvesSection(Section):
    """Every run faintly, the mean over its seeds strongly; an arrow where it was still improving."""

    name = "curves"
    script = "curves.js"

    def html(self) -> str:
        """Return the figure."""
        summary, declared = self.summary, self.summary.declared
        thicker = f" Thicker lines are larger {declared.sizes.plural}." if len(summary.sizes) > 1 else ""
        ends = " A cross ends a run that diverged." if summary.count("diverged") else ""
        caption = (
            f"{capitalised(summary.quality.name)} and loss on validation data during training. Strong lines "
            "are means over seeds, as far as all of them were trained; faint lines are the seeds."
            f"{thicker}{ends}{self._improving_text()}"
        )
        return figure_html("curves", "How fast does it learn?", caption, is_wide=True)

    def data(self) -> dict[str, Any]:
        """Return the lines of every panel, and what they can be drawn against."""
        units = self.summary.declared.unit.plural
        chosen = {
            (cell.candidate, cell.setting, cell.size, cell.learning_rate) for cell in self.summary.cells
        }
        return {
            "has_rate_choice": self.summary.has_rate_choice,
            "along": [
                [units, units, f"training {units}"],
                ["step", "steps", "training steps"],
                ["seconds", "seconds", "training time (seconds)"],
            ],
            "groups": [
                {**self._group(key, runs), "chosen": key in chosen} for key, runs in self._groups().items()
            ],
        }

    def protocol(self) -> dict[str, str]:
        """Define what the answer calls still improving, if it says so of anything."""
        quality = self.summary.quality
        if not any(is_improving(cell.runs, quality) for cell in self.summary.cells):
            return {}
        return {"Still improving": describe_rule(quality)}

    def _improving_text(self) -> str:
        """Explain arrows, or say that there is none; nothing if no curve reaches back far enough."""
        quality = self.summary.quality
        if self._is_any_improving():
            return (
                f" A line of {quality.name} that ends in an arrow was still improving when its budget ended: "
                f"{describe_rule(quality)}. With more training it may rank higher: slow to start is not "
                "worse."
            )
        gains = (late_gain(finished_curves(runs), quality) for runs in self._groups().values())
        if all(gain is None for gain in gains):
            return ""
        return f" No line was still improving when its budget ended: of none, {describe_rule(quality)}."

    def _is_any_improving(self) -> bool:
        return any(is_improving(runs, self.summary.quality) for runs in self._groups().values())

    def _groups(self) -> dict[_Group, list[Run]]:
        """The runs of each line, in the order of the grid."""
        groups: dict[_Group, list[Run]] = {}
        for run in self.summary.runs:
            spec = run.spec
            key = spec.candidate, spec.setting_name, spec.size, spec.learning_rate
            groups.setdefault(key, []).append(run)
        return groups

    def _group(self, key: _Group, runs: Sequence[Run]) -> dict[str, Any]:
        candidate, setting, size, rate = key
        return {
            "series": self.summary.candidates.index(candidate),
            "setting": self.summary.settings.index(setting),
            "size": size,
            "title": f"{candidate}, {self.summary.declared.sizes.name} {size}",
            "rate": f"learning rate {rate:g}",
            "improving": is_improving(runs, self.summary.quality),
            "seeds": [self._seed(run) for run in runs],
        }

    def _seed(self, run: Run) -> dict[str, Any]:
        result = run.result or {}
        return {
            "seed": f"seed {run.spec.seed}",
            "status": run.status,
            "message": result.get("message"),
            "curve": self._curve(result.get("curve") or ()),
        }

    def _curve(self, points: Iterable[Mapping[str, Any]]) -> dict[str, list[int | float | None]]:
        """A curve by column, rounded to what a screen can show: the page carries every run's."""
        kept = list(points)
        columns = ("step", self.summary.declared.unit.plural, "seconds", "quality", "loss")
        return {name: [_rounded(point.get(name)) for point in kept] for name in columns}


def _rounded(value: int | float | None) -> int | float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")
