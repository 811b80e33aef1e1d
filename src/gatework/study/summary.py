"""What the runs of a study say together: seeds averaged, learning rates chosen, choices compared.

A *cell* is one candidate in one setting at one size; its seeds are averaged at the learning rate that is best
on the validation data, and what is reported of them is the quality on test data, on which nothing is chosen.
A *choice* is one candidate at one size, averaged over the settings: what a reader could choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeVar

from gatework.study.spec import RunSpec, StudySpec
from gatework.tasks.declaration import Declaration, Scaling, ScalingCurve
from gatework.tasks.task import Quality

STATUSES = ("finished", "diverged", "failed", "missing")
_Item = TypeVar("_Item")
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Run:
    """One run of the grid and what is known of it.

    Attributes:
        spec: What was to be trained.
        result: The stored result, or None if there is none yet.
    """

    spec: RunSpec
    result: Mapping[str, Any] | None = None

    @property
    def status(self) -> str:
        """``finished``, ``diverged``, ``failed`` or ``missing``."""
        return "missing" if self.result is None else str(self.result["status"])

    def metric(self, name: str) -> float | None:
        """Return test ``quality`` or ``loss``, ``validation_quality`` or ``validation_loss``, if known."""
        return self._number("metrics", name)

    def cost(self, name: str) -> float | None:
        """Return one of the measured costs, such as ``state_bytes``, None where it was not measured."""
        return self._number("cost", name)

    def loss(self, name: str = "overall") -> float | None:
        """Return the test loss of a finished run: ``overall``, or on one slice such as ``ar_hits``."""
        if self.status != "finished":
            return None
        if name == "overall":
            return self.metric("loss")
        value = ((self.result or {}).get("metrics") or {}).get("slices", {}).get(name)
        return None if value is None else float(value)

    def _number(self, table: str, name: str) -> float | None:
        value = ((self.result or {}).get(table) or {}).get(name)
        return None if value is None else float(value)

    @property
    def quality(self) -> float | None:
        """The headline number, on test data, which only a finished run has."""
        return self.metric("quality") if self.status == "finished" else None

    def measured(self, scaling: Scaling) -> Mapping[int, Mapping[str, Any]]:
        """Return what was measured at growing points, by the point; nothing where it was not."""
        rows = self._scaling(scaling).get("measured", ())
        return {row[scaling.point]: row for row in rows if scaling.point in row}

    def stopped(self, scaling: Scaling) -> str | None:
        """Return why nothing was measured at further points that were asked for."""
        reason: str | None = self._scaling(scaling).get("stopped")
        return reason

    def _scaling(self, scaling: Scaling) -> Mapping[str, Any]:
        found: Mapping[str, Any] = ((self.result or {}).get("scaling") or {}).get(scaling.key) or {}
        return found

    @property
    def validation_quality(self) -> float | None:
        """What learning rates are chosen by: the quality on validation data, of a finished run."""
        return self.metric("validation_quality") if self.status == "finished" else None


@dataclass(frozen=True)
class Spread:
    """Some numbers in short.

    Attributes:
        mean: Their mean.
        low: The smallest.
        high: The largest.
        count: How many there were.
        std: Their standard deviation, with ``count - 1`` below the sum; None for a single number.
    """

    mean: float
    low: float
    high: float
    count: int
    std: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Summarise the numbers among ``values``; None if there is none."""
        numbers = [value for value in values if value is not None]
        return cls.around(fmean(numbers), numbers) if numbers else None

    @classmethod
    def around(cls, mean: float, numbers: Sequence[float]) -> Spread:
        """Summarise ``numbers`` around a mean that may come from more of them."""
        std = stdev(numbers) if len(numbers) > 1 else None
        return cls(mean, min([mean, *numbers]), max([mean, *numbers]), len(numbers), std)


@dataclass(frozen=True)
class Cell:
    """One candidate in one setting at one size, at the learning rate that is best on validation data.

    Attributes:
        candidate: Its label.
        setting: Name of the setting.
        size: The size.
        runs: The seeds of the learning rate that was chosen.
        num_rates: How many learning rates there were to choose from.
        num_unstable_rates: At how many of them a seed diverged.
    """

    candidate: str
    setting: str
    size: int
    runs: Sequence[Run]
    num_rates: int
    num_unstable_rates: int

    @property
    def learning_rate(self) -> float:
        """The learning rate of all ``runs``."""
        return self.runs[0].spec.learning_rate

    @cached_property
    def quality(self) -> Spread | None:
        """Test quality over the finished seeds."""
        return Spread.of(run.quality for run in self.runs)

    @cached_property
    def validation(self) -> Spread | None:
        """Validation quality over the finished seeds: what the learning rate was chosen by."""
        return Spread.of(run.validation_quality for run in self.runs)

    def cost(self, name: str) -> Spread | None:
        """Summarise one measured cost over the seeds."""
        return Spread.of(run.cost(name) for run in self.runs)

    def scaling(self, scaling: Scaling, curve: ScalingCurve) -> dict[int, Spread]:
        """Summarise what was measured at growing points over the seeds, by the point."""
        measured = [run.measured(scaling) for run in self.runs]
        points = sorted({point for rows in measured for point in rows})
        found = {
            point: Spread.of(rows.get(point, {}).get(curve.key) for rows in measured) for point in points
        }
        return {point: spread for point, spread in found.items() if spread is not None}

    def count(self, status: str) -> int:
        """Return how many seeds ended (or not) with that status."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True)
class Choice:
    """One candidate at one size over all settings: something a reader could choose.

    Attributes:
        candidate: Its label.
        size: The size.
        quality: On test data, mean over settings; its spread is that of the seeds, each averaged over the
            settings.
        costs: Every counted cost by its key, in the setting where it is largest; None where it is unknown.
        rate: Training throughput, mean over settings.
    """

    candidate: str
    size: int
    quality: Spread
    costs: Mapping[str, float | None]
    rate: float | None


@dataclass(frozen=True)
class Summary:
    """A study with its results.

    Attributes:
        study: The study.
        runs: Every run of its grid, in the order of the grid.
        num_foreign: Results that belong to no run of the grid, and are left out.
        companion: The study that accompanies it, if there is one.
    """

    study: StudySpec
    runs: Sequence[Run]
    num_foreign: int
    companion: Summary | None = None

    @property
    def declared(self) -> Declaration:
        """What the task says of its axes, units and costs."""
        return self.study.declaration

    @property
    def quality(self) -> Quality:
        """What the headline number is."""
        return self.study.quality

    @cached_property
    def candidates(self) -> list[str]:
        """Labels of what is compared, in the order of the grid."""
        return list(dict.fromkeys(run.spec.candidate for run in self.runs))

    @cached_property
    def settings(self) -> list[str]:
        """Names of the settings, in the order of the grid."""
        return list(dict.fromkeys(run.spec.setting_name for run in self.runs))

    @cached_property
    def sizes(self) -> list[int]:
        """All sizes, growing."""
        return sorted({run.spec.size for run in self.runs})

    @cached_property
    def definitions(self) -> dict[str, Any]:
        """What each candidate is built from, by its label."""
        return {run.spec.candidate: run.spec.definition for run in reversed(self.runs)}

    @cached_property
    def clearest_setting(self) -> int:
        """Position of the setting in which the candidates differ most: the one worth showing first."""

        def spread(setting: str) -> float:
            values = [cell.quality.mean for cell in self.cells if cell.setting == setting and cell.quality]
            return max(values) - min(values) if values else -1.0

        return max(range(len(self.settings)), key=lambda index: spread(self.settings[index]))

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of the grid, in its order."""
        groups = _group(self.runs, lambda run: (run.spec.candidate, run.spec.setting_name, run.spec.size))
        return [self._best_cell(*key, runs) for key, runs in groups.items()]

    def points(self, scaling: Scaling) -> list[int]:
        """Return the points at which something was measured in any run, growing."""
        return sorted({point for run in self.runs for point in run.measured(scaling)})

    @property
    def has_rate_choice(self) -> bool:
        """Whether any cell had more than one learning rate to choose from."""
        return any(cell.num_rates > 1 for cell in self.cells)

    @cached_property
    def choices(self) -> list[Choice]:
        """Every candidate and size with a finished seed in each setting and no diverged one, best first."""
        groups = _group(self.cells, lambda cell: (cell.candidate, cell.size))
        found = (self._choice(cells) for cells in groups.values())
        return sorted(
            (entry for entry in found if entry), key=lambda entry: -self.goodness(entry.quality.mean)
        )

    @property
    def unstable(self) -> list[tuple[str, int]]:
        """Candidate and size wherever a seed diverged at the chosen learning rate."""
        found = ((cell.candidate, cell.size) for cell in self.cells if cell.count("diverged"))
        return list(dict.fromkeys(found))

    def count(self, status: str) -> int:
        """Return how many runs of the grid have that status."""
        return sum(run.status == status for run in self.runs)

    def goodness(self, quality: float) -> float:
        """Return ``quality`` with the sign that makes larger better."""
        return quality if self.quality.better == "higher" else -quality

    def _best_cell(self, candidate: str, setting: str, size: int, runs: Sequence[Run]) -> Cell:
        """Choose the learning rate by its mean on validation data, never by what it reached on test data.

        A rate of which a seed diverged comes after all others, because survivors flatter; one of which no
        validation quality is known is chosen only if there is no other.
        """
        by_rate = _group(runs, lambda run: run.spec.learning_rate)
        unstable = sum(any(run.status == "diverged" for run in group) for group in by_rate.values())
        cells = [Cell(candidate, setting, size, group, len(by_rate), unstable) for group in by_rate.values()]

        def rank(cell: Cell) -> tuple[bool, bool, bool, float]:
            mean = self.goodness(cell.validation.mean) if cell.validation else 0.0
            known = cell.validation is not None
            return known, cell.quality is not None, not cell.count("diverged"), mean

        return max(cells, key=rank)

    def _choice(self, cells: Sequence[Cell]) -> Choice | None:
        """Average one candidate at one size over all settings; None if it cannot be compared in each."""
        means = [cell.quality.mean for cell in cells if cell.quality and not cell.count("diverged")]
        if len(means) < len(self.settings):
            return None
        by_seed = _group([run for cell in cells for run in cell.runs], lambda run: run.spec.seed)
        complete = [
            fmean(values)
            for runs in by_seed.values()
            if len(values := [run.quality for run in runs if run.quality is not None]) == len(cells)
        ]
        quality = Spread.around(fmean(means), complete)
        keys = [cost.key for cost in self.declared.all_costs]
        costs = {key: _over([cell.cost(key) for cell in cells], max) for key in keys}
        rate = _over([cell.cost(self.declared.unit.rate) for cell in cells], fmean)
        return Choice(cells[0].candidate, cells[0].size, quality, costs, rate)


def summarise(
    study: StudySpec, results: Mapping[str, Mapping[str, Any]], companion: Summary | None = None
) -> Summary:
    """Bring a study and its stored results together.

    Args:
        study: The study.
        results: Results by run id; those of runs outside the grid are counted and left out.
        companion: The study that accompanies it.
    """
    runs = [Run(spec, results.get(spec.run_id)) for spec in study.runs]
    return Summary(study, runs, len(set(results) - {spec.run_id for spec in study.runs}), companion)


def _over(spreads: Sequence[Spread | None], combine: Callable[[list[float]], float]) -> float | None:
    """Combine the means over settings, None unless it was measured in every setting."""
    means = [spread.mean for spread in spreads if spread is not None]
    return combine(means) if len(means) == len(spreads) else None


def _group(items: Iterable[_Item], key: Callable[[_Item], _Key]) -> dict[_Key, list[_Item]]:
    """Group in the order of first appearance."""
    groups: dict[_Key, list[_Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
