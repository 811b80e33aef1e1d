"""A study on disk as Python sees it: its runs and cells as tables, its answer, its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.study.results import METRICS, ResultStore, metric_columns, scaling_columns
from gatework.study.sections import sections_of
from gatework.study.spec import STUDY_FILE, StudySpec
from gatework.study.summary import STATUSES, Cell, Run, Summary, summarise
from gatework.tasks import task_declaration
from gatework.tasks.declaration import Declaration

if TYPE_CHECKING:
    import pandas as pd

    from gatework.study.engine import StudyOutcome


class Study:
    """A study and the results that it has when it is opened.

    Attributes:
        directory: Where it is.
        spec: The grid and the facts that its page states.
        outcome: How the call that made it went; None if it was only opened.
        companion: The study that accompanies it; None if there is none.
    """

    def __init__(
        self,
        directory: Path,
        spec: StudySpec,
        results: Mapping[str, Mapping[str, Any]],
        outcome: StudyOutcome | None = None,
        companion: Study | None = None,
    ) -> None:
        self.directory = directory
        self.spec = spec
        self.outcome = outcome
        self.companion = companion
        self._results = results

    @classmethod
    def open(cls, path: str | Path, *, outcome: StudyOutcome | None = None) -> Study:
        """Read a study; it may be running, or have lost runs.

        Args:
            path: The study directory.
            outcome: How the call that made it went.

        Raises:
            FileError: If there is no valid study, or one of its files is broken.
        """
        directory = Path(path)
        spec, results = StudySpec.read(directory), ResultStore(directory).read_all()
        companion, beside = spec.declaration.companion, None
        if companion is not None and (directory / companion.option / STUDY_FILE).exists():
            beside = cls.open(directory / companion.option)
        return cls(directory, spec, results, outcome, beside)

    @cached_property
    def summary(self) -> Summary:
        """What the runs say together."""
        companion = None if self.companion is None else self.companion.summary
        return summarise(self.spec, self._results, companion)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run of the grid.

        What is compared, and the size, are called as the task calls them. ``quality``, ``loss`` and the
        slices are measured on test data, ``validation_quality`` and ``validation_loss`` on the data by which
        learning rates are chosen. All measured costs follow, then what was measured at growing points.
        """
        return _table([_run_row(self.spec.declaration, run) for run in self.summary.runs])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per candidate, setting and size, at its learning rate that is best on validation data.

        ``mean``, ``std``, ``low`` and ``high`` are of the test quality over the ``num_seeds`` that finished;
        ``validation`` is the mean by which the learning rate was chosen. Costs are means too, and so is what
        was measured at growing points. Columns of the task's own report sections follow.
        """
        summary = self.summary
        costs = list(dict.fromkeys(name for run in summary.runs for name in _costs(run)))
        rows = [_cell_row(self.spec.declaration, cell, costs) for cell in summary.cells]
        for kind in sections_of(self.spec.declaration):
            if columns := kind(summary).cell_columns():
                rows = [{**row, **more} for row, more in zip(rows, columns, strict=True)]
        return _table(rows)

    @property
    def answer(self) -> str:
        """What the study says, in words, with what limits it."""
        from gatework.study.answer import answer

        return answer(self.summary).text

    def report(self) -> Path:
        """Write the page anew, and return its path.

        Raises:
            FileError: If a file of the study is broken, or the page cannot be written.
        """
        from gatework.study.report import write_report

        return write_report(self.directory)

    def __repr__(self) -> str:
        counts = Counter(run.status for run in self.summary.runs)
        statuses = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
        summary, declared = self.summary, self.spec.declaration
        axes = [
            _several(len(summary.candidates), declared.candidates.name, declared.candidates.plural),
            _several(len(summary.settings), "setting", "settings"),
            _several(len(summary.sizes), declared.sizes.name, declared.sizes.plural),
            _several(len({run.spec.seed for run in summary.runs}), "seed", "seeds"),
        ]
        return f"Study({str(self.directory)!r}, task {self.spec.task!r}: {', '.join(axes)}; runs: {statuses})"


def strip_timings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored result without what differs when the same command is executed again.

    That is when it started, and how long it took: what is left is equal, to the last bit.

    Raises:
        ValueError: If its task is not known here.
    """
    declared = task_declaration(result["spec"]["task"])
    timed = ("seconds", declared.unit.rate)
    kept = deepcopy(dict(result))
    del kept["started"]
    for table in (kept["cost"], *(kept["curve"] or ())):
        _drop(table, timed)
    for scaling in declared.scalings:
        timed_curves = [curve.key for curve in scaling.curves if curve.is_timed]
        for row in ((kept.get("scaling") or {}).get(scaling.key) or {}).get("measured", ()):
            _drop(row, timed_curves)
    return kept


def _drop(table: dict[str, Any] | None, names: Sequence[str]) -> None:
    for name in names:
        (table or {}).pop(name, None)


def _costs(run: Run) -> dict[str, Any]:
    return (run.result or {}).get("cost") or {}


def _run_row(declared: Declaration, run: Run) -> dict[str, Any]:
    result = run.result or {}
    metrics = result.get("metrics") or {}
    return {
        "run_id": run.spec.run_id,
        "setting": run.spec.setting_name,
        declared.candidates.name: run.spec.candidate,
        declared.sizes.name: run.spec.size,
        "learning_rate": run.spec.learning_rate,
        "seed": run.spec.seed,
        "status": run.status,
        **{name: metrics.get(name) for name in METRICS},
        **_costs(run),
        **scaling_columns(declared, result),
        **metric_columns(declared, metrics),
        "message": result.get("message"),
    }


def _cell_row(declared: Declaration, cell: Cell, costs: list[str]) -> dict[str, Any]:
    quality, validation = cell.quality, cell.validation
    means = {name: cell.cost(name) for name in costs}
    return {
        declared.candidates.name: cell.candidate,
        "setting": cell.setting,
        declared.sizes.name: cell.size,
        "learning_rate": cell.learning_rate,
        **{name: getattr(quality, name, None) for name in ("mean", "std", "low", "high")},
        "num_seeds": 0 if quality is None else quality.count,
        "num_diverged": cell.count("diverged"),
        "validation": None if validation is None else validation.mean,
        **{name: None if mean is None else mean.mean for name, mean in means.items()},
        **_scaled(declared, cell),
    }


def _scaled(declared: Declaration, cell: Cell) -> dict[str, float | None]:
    """Means of the first curve of each scaling, by the names that it has in the table of runs."""
    columns: dict[str, float | None] = {}
    for scaling in declared.scalings:
        first = scaling.curves[0]
        means = cell.scaling(scaling, first)
        rows = [{scaling.point: point, first.key: spread.mean} for point, spread in means.items()]
        columns |= scaling.columns(rows)
    return columns


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    numbers = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    table = pd.DataFrame(rows)
    # A column of which some values are not known holds NaN there, and stays numeric if all are unknown.
    unknown = [name for name in table if table[name].isna().any() and (name in numbers or name in METRICS)]
    return table.astype(dict.fromkeys(unknown, "float64"))


def _several(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun if number == 1 else plural}"
