"""A study on disk as Python sees it: its runs and cells as tables, its answer, its page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.study.companion import COMPANION_FOLDER
from gatework.study.recall_gap import GapCell, text_gap
from gatework.study.results import METRICS, ResultStore, decoding_columns, slice_columns
from gatework.study.spec import STUDY_FILE, StudySpec
from gatework.study.summary import STATUSES, Cell, Run, Summary, summarise

if TYPE_CHECKING:
    import pandas as pd

    from gatework.study.engine import StudyOutcome

#: What differs between two executions of the same run: when, and how fast.
_TIMINGS = ("seconds", "tokens_per_second")


class Study:
    """A study and the results that it has when it is opened.

    Attributes:
        directory: Where it is.
        spec: The grid and the facts that its page states.
        outcome: How the call that made it went; None if it was only opened.
        companion: The recall study beside one on text; None if there is none.
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
        beside = directory / COMPANION_FOLDER
        has_companion = spec.task == "text" and (beside / STUDY_FILE).exists()
        return cls(directory, spec, results, outcome, cls.open(beside) if has_companion else None)

    @cached_property
    def summary(self) -> Summary:
        """What the runs say together."""
        return summarise(self.spec, self._results)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run of the grid.

        ``quality``, ``loss`` and the slices are measured on test data, ``validation_quality`` and
        ``validation_loss`` on the data by which learning rates are chosen. All measured costs follow, then
        the speed of decoding at each context.
        """
        return _table([_run_row(run) for run in self.summary.runs])

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per mixer, setting and width, at its learning rate that is best on validation data.

        ``mean``, ``std``, ``low`` and ``high`` are of the test quality over the ``num_seeds`` that finished;
        ``validation`` is the mean by which the learning rate was chosen. Costs are means too. On text whose
        AR hits were told apart, the perplexities follow and, in nats per token, the gap to attention, where
        it can be compared; ``gap_share`` of it lies on AR hits, where it is clear.
        """
        costs = list(dict.fromkeys(name for run in self.summary.runs for name in _costs(run)))
        gap = text_gap(self.summary)
        cells = gap.cells if gap is not None and gap.has_slices else [None] * len(self.summary.cells)
        return _table(
            [
                _cell_row(cell, costs) | _gap_row(beside)
                for cell, beside in zip(self.summary.cells, cells, strict=True)
            ]
        )

    @property
    def answer(self) -> str:
        """What the study says, in words, with what limits it."""
        from gatework.study.answer import answer

        return answer(self.summary, self.companion.summary if self.companion else None).text

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
        axes = [
            _several(len(self.summary.mixers), "mixer"),
            _several(len(self.summary.settings), "setting"),
            _several(len(self.summary.widths), "width"),
            _several(len({run.spec.seed for run in self.summary.runs}), "seed"),
        ]
        return f"Study({str(self.directory)!r}, task {self.spec.task!r}: {', '.join(axes)}; runs: {statuses})"


def strip_timings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored result without what differs when the same command is executed again.

    That is when it started, and how long it took: what is left is equal, to the last bit.
    """
    kept = deepcopy(dict(result))
    del kept["started"]
    measured = (kept.get("decoding") or {}).get("measured", ())
    for table in (kept["cost"], *(kept["curve"] or ()), *measured):
        for name in _TIMINGS:
            (table or {}).pop(name, None)
    return kept


def _costs(run: Run) -> dict[str, Any]:
    return (run.result or {}).get("cost") or {}


def _run_row(run: Run) -> dict[str, Any]:
    result = run.result or {}
    metrics = result.get("metrics") or {}
    return {
        "run_id": run.spec.run_id,
        "setting": run.spec.setting_name,
        "mixer": run.spec.mixer,
        "width": run.spec.width,
        "learning_rate": run.spec.learning_rate,
        "seed": run.spec.seed,
        "status": run.status,
        **{name: metrics.get(name) for name in METRICS},
        **_costs(run),
        **decoding_columns(result),
        **slice_columns(metrics),
        "message": result.get("message"),
    }


def _cell_row(cell: Cell, costs: list[str]) -> dict[str, Any]:
    quality, validation = cell.quality, cell.validation
    means = {name: cell.cost(name) for name in costs}
    return {
        "mixer": cell.mixer,
        "setting": cell.setting,
        "width": cell.width,
        "learning_rate": cell.learning_rate,
        **{name: getattr(quality, name, None) for name in ("mean", "std", "low", "high")},
        "num_seeds": 0 if quality is None else quality.count,
        "num_diverged": cell.count("diverged"),
        "validation": None if validation is None else validation.mean,
        **{name: None if mean is None else mean.mean for name, mean in means.items()},
        **{f"decoding tokens_per_second at {context}": rate.mean for context, rate in cell.decoding.items()},
    }


def _gap_row(cell: GapCell | None) -> dict[str, Any]:
    """Means of what is known of a text's AR hits, unrounded and not capped."""
    if cell is None:
        return {}
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


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    numbers = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    table = pd.DataFrame(rows)
    # A column of which some values are not known holds NaN there, and stays numeric if all are unknown.
    unknown = [name for name in table if table[name].isna().any() and (name in numbers or name in METRICS)]
    return table.astype(dict.fromkeys(unknown, "float64"))


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
