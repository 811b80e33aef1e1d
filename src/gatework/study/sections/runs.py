"""Every run: the table at the end of the page, its columns, its file, and what a row unfolds to."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

from gatework.page.frame import fill_template
from gatework.page.quantities import (
    FORMATS,
    format_count,
    format_flops,
    format_quality,
    format_seconds,
)
from gatework.study.page_data import environment_text
from gatework.study.results import METRICS, metric_columns, scaling_columns
from gatework.study.sections import sections_of
from gatework.study.sections.section import Section
from gatework.study.summary import Run
from gatework.tasks.candidates import definition_text
from gatework.tasks.declaration import ACTIVATIONS, PARAMETERS, TRAINING_FLOPS, Cost, Scaling

_Writer = Callable[[int | float | None], str]
_Columns = dict[str, str]


class RunsSection(Section):
    """The table of runs."""

    name = "runs"
    script = "runs.js"

    def html(self) -> str:
        """Return the place of the table."""
        candidates = self.summary.declared.candidates
        words = {"candidate": candidates.name, "candidates": candidates.plural}
        return fill_template("study/page/runs.html", words)

    def data(self) -> dict[str, Any]:
        """Return rows, columns with their headings, what rows unfold to, and the columns of the file.

        A row has every number twice, to sort by and to read; units stand in the headings.
        """
        shown, unfolded = self._shown_columns(), self._unfolded_columns()
        return {
            "columns": [[key, title] for key, title in shown.items()],
            "facts": [[key, title] for key, title in unfolded.items()],
            "file": self._file_columns(),
            "rows": [self._row(run) for run in self.summary.runs],
        }

    @cached_property
    def _metric_columns(self) -> list[str]:
        """Columns of what tasks measure beside quality and loss, in the order of the runs that have them."""
        declared = self.summary.declared
        tables = (
            metric_columns(declared, (run.result or {}).get("metrics") or {}) for run in self.summary.runs
        )
        return list(dict.fromkeys(name for table in tables for name in table))

    @cached_property
    def _scaling_columns(self) -> dict[str, tuple[str, _Writer]]:
        """Columns of what was measured at growing points, with their headings and how they are written."""
        return {
            _column_name(scaling, point): (
                scaling.column.format(point),
                FORMATS[scaling.curves[0].format][0],
            )
            for scaling in self.summary.declared.scalings
            for point in self.summary.points(scaling)
        }

    def _shown_columns(self) -> _Columns:
        declared = self.summary.declared
        unit = declared.unit
        own = [column for kind in sections_of(declared) for column in kind.table_columns.items()]
        return {
            declared.candidates.name: declared.candidates.name,
            **({"setting": "setting"} if len(self.summary.settings) > 1 else {}),
            declared.sizes.name: declared.sizes.name,
            "learning_rate": "learning rate",
            "seed": "seed",
            "status": "status",
            "quality": self.summary.quality.name,
            "loss": "loss",
            **{name: title for name, title in own if name in self._metric_columns},
            PARAMETERS.key: PARAMETERS.title,
            **{cost.key: cost.title for cost in declared.costs if self._is_shown(cost)},
            ACTIVATIONS.key: "memory",
            TRAINING_FLOPS.key: "compute",
            unit.rate: f"{unit.plural}/s training",
            **self._last_points(),
            "seconds": "time",
        }

    def _is_shown(self, cost: Cost) -> bool:
        """Whether a cost has a column: another count of one only where there is any such count."""
        return not cost.instead_of or any(run.cost(cost.key) for run in self.summary.runs)

    def _last_points(self) -> _Columns:
        """The column of the largest point of each scaling: the table has room for no more."""
        measured = {scaling: self.summary.points(scaling) for scaling in self.summary.declared.scalings}
        return {
            _column_name(scaling, points[-1]): scaling.column.format(points[-1])
            for scaling, points in measured.items()
            if points
        }

    def _unfolded_columns(self) -> _Columns:
        unit = self.summary.declared.unit
        return {
            "validation_quality": f"validation {self.summary.quality.name}",
            "validation_loss": "validation loss",
            **{name: name.replace("_", " ") for name in self._metric_columns},
            unit.flops: f"compute per {unit.name}",
            unit.total: f"training {unit.plural}",
            **{name: title for name, (title, _) in self._scaling_columns.items()},
        }

    def _file_columns(self) -> list[str]:
        declared = self.summary.declared
        return [
            *("run_id", declared.candidates.name, declared.definition, "setting", declared.sizes.name),
            *("learning_rate", "seed", "status"),
            *METRICS,
            *self._writers,
            *self._metric_columns,
            *self._scaling_columns,
            "message",
        ]

    @cached_property
    def _writers(self) -> dict[str, _Writer]:
        """How each cost is written, in the order of the file's columns."""
        declared = self.summary.declared
        counted = {cost.key: FORMATS[cost.format][0] for cost in declared.all_costs}
        last = counted.pop(TRAINING_FLOPS.key)
        return {
            **counted,
            declared.unit.flops: format_flops,
            TRAINING_FLOPS.key: last,
            declared.unit.total: format_count,
            declared.unit.rate: format_count,
            "seconds": format_seconds,
        }

    def _row(self, run: Run) -> dict[str, Any]:
        summary, result, spec = self.summary, run.result or {}, run.spec
        values, texts = self._numbers(run)
        size = summary.declared.sizes.name
        return {
            "id": spec.run_id,
            "series": summary.candidates.index(spec.candidate),
            "setting": summary.settings.index(spec.setting_name),
            "definition": definition_text(spec.definition),
            "status": run.status,
            "message": result.get("message"),
            "started": result.get("started"),
            "environment": environment_text(result.get("environment")),
            "spec": json.dumps(spec.to_json(), indent=2, ensure_ascii=False),
            "values": {
                size: spec.size,
                "learning_rate": spec.learning_rate,
                "seed": spec.seed,
                **values,
            },
            "texts": {
                size: str(spec.size),
                "learning_rate": f"{spec.learning_rate:g}",
                "seed": str(spec.seed),
                **texts,
            },
        }

    def _numbers(self, run: Run) -> tuple[dict[str, float | None], dict[str, str]]:
        """What was measured of a run, to sort by and to read."""
        declared, result = self.summary.declared, run.result or {}
        measured = metric_columns(declared, result.get("metrics") or {})
        scaled = scaling_columns(declared, result)
        qualities = {name: run.metric(name) for name in METRICS}
        qualities |= {name: measured.get(name) for name in self._metric_columns}
        costs = {name: run.cost(name) for name in self._writers}
        speeds = {name: scaled.get(name) for name in self._scaling_columns}
        texts = {name: format_quality(value) for name, value in qualities.items()}
        texts |= {name: self._writers[name](value) for name, value in costs.items()}
        texts |= {name: self._scaling_columns[name][1](value) for name, value in speeds.items()}
        return {**qualities, **costs, **speeds}, texts


def _column_name(scaling: Scaling, point: int) -> str:
    """What results call the first curve of a scaling at one point."""
    return next(iter(scaling.columns([{scaling.point: point, scaling.curves[0].key: None}])))
