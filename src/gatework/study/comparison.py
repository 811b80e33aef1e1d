"""Two studies of one task side by side: what they have in common, how it differs, what only one of them has.

One study is reported *against* the other, its baseline. A *pair* is one cell (candidate, setting, size) that
both have. Differences are of test quality, the study's minus the baseline's; their range reaches over all
pairs of seeds, so that it holds zero exactly if the seeds of the two overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from gatework.study.spec import StudyError, canonical_json
from gatework.study.summary import Cell, Spread, Summary
from gatework.tasks.declaration import Declaration

VERDICTS = ("better", "worse", "overlap", "one seed", "unknown")


@dataclass(frozen=True)
class Pair:
    """One cell of both studies.

    Attributes:
        study: The cell in the study.
        baseline: The same cell in the baseline.
        sign: 1 if larger qualities are better, -1 if smaller ones are.
    """

    study: Cell
    baseline: Cell
    sign: int

    @cached_property
    def difference(self) -> Spread | None:
        """Quality of the study minus that of the baseline; its range is over all pairs of seeds.

        ``count`` is the smaller number of seeds, ``std`` the standard error of the difference of the means.
        """
        one, two = self.study.quality, self.baseline.quality
        if one is None or two is None:
            return None
        error = None
        if one.std is not None and two.std is not None:
            error = (one.std**2 / one.count + two.std**2 / two.count) ** 0.5
        low, high = one.low - two.high, one.high - two.low
        return Spread(one.mean - two.mean, low, high, min(one.count, two.count), error)

    @property
    def verdict(self) -> str:
        """What the study is beside its baseline: ``better``, ``worse``, or none of them.

        ``overlap`` if the ranges of the seeds do, ``one seed`` if one of the two has no range, ``unknown`` if
        one has no quality at all, or lost a seed to divergence: survivors flatter.
        """
        if self.difference is None or self.study.count("diverged") or self.baseline.count("diverged"):
            return "unknown"
        if self.difference.count < 2:
            return "one seed"
        if self.difference.low <= 0 <= self.difference.high:
            return "overlap"
        return "better" if self.sign * self.difference.mean > 0 else "worse"

    def ratio(self, cost: str) -> float | None:
        """Return a cost of the study over that of the baseline, None where one is unknown or zero."""
        one, two = self.study.cost(cost), self.baseline.cost(cost)
        return None if one is None or two is None or not two.mean else one.mean / two.mean


@dataclass(frozen=True)
class Change:
    """Something that the specifications of common cells do not share.

    Attributes:
        name: Such as ``training.steps``.
        study: Its value in the study, as JSON; ``"absent"`` if it has none.
        baseline: The same in the baseline.
        count: In how many of the common cells.
    """

    name: str
    study: str
    baseline: str
    count: int


@dataclass(frozen=True)
class Comparison:
    """A study against a baseline.

    Attributes:
        study: The study.
        baseline: What it is compared with.
        pairs: The cells that both have, in the order of the study.
        only_study: Cells of the study alone.
        only_baseline: Cells of the baseline alone.
    """

    study: Summary
    baseline: Summary
    pairs: Sequence[Pair]
    only_study: Sequence[Cell]
    only_baseline: Sequence[Cell]

    @cached_property
    def candidates(self) -> list[str]:
        """Labels of what the common cells compare, in the order of the study."""
        return list(dict.fromkeys(pair.study.candidate for pair in self.pairs))

    @cached_property
    def costs(self) -> dict[str, str]:
        """Keys of the costs whose ratio is reported, and what a page calls them."""
        declared = self.study.declared
        counted = {cost.key: cost.title for cost in declared.all_costs if not cost.instead_of}
        return {**counted, declared.unit.rate: "training speed"}

    @cached_property
    def changes(self) -> list[Change]:
        """What differs between the specifications of common cells, the most frequent first."""
        counts: dict[tuple[str, str, str], int] = {}
        for pair in self.pairs:
            for change in spec_changes(pair, self.study.declared):
                counts[change] = counts.get(change, 0) + 1
        changes = [Change(*change, count) for change, count in counts.items()]
        return sorted(changes, key=lambda change: (-change.count, change.name))

    def count(self, verdict: str) -> int:
        """Return how many pairs have that verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)

    def median_ratio(self, cost: str) -> float | None:
        """Return the median over the pairs of a cost of the study over that of the baseline."""
        ratios = [ratio for pair in self.pairs if (ratio := pair.ratio(cost)) is not None]
        return median(ratios) if ratios else None


def compare_studies(study: Summary, baseline: Summary) -> Comparison:
    """Bring two studies together.

    Raises:
        StudyError: If they are of different tasks, report different qualities, or were made when their task
            compared something else.
    """
    one, two = study.study, baseline.study
    if one.task != two.task:
        raise StudyError(
            f"only studies of one task can be compared, got {one.name!r} on {one.task!r} "
            f"against {two.name!r} on {two.task!r}"
        )
    for name in ("name", "better", "unit"):
        mine, other = getattr(one.quality, name), getattr(two.quality, name)
        if mine != other:
            raise StudyError(
                f"only studies of one quality can be compared: its {name} is {mine!r} in {one.name!r} "
                f"and {other!r} in {two.name!r}"
            )
    _check_declarations(one.declaration, two.declaration, one.task)
    sign = 1 if one.quality.better == "higher" else -1
    mine_by_key = {_key(cell): cell for cell in study.cells}
    other_by_key = {_key(cell): cell for cell in baseline.cells}
    return Comparison(
        study,
        baseline,
        [Pair(cell, other_by_key[key], sign) for key, cell in mine_by_key.items() if key in other_by_key],
        [cell for key, cell in mine_by_key.items() if key not in other_by_key],
        [cell for key, cell in other_by_key.items() if key not in mine_by_key],
    )


def _check_declarations(one: Declaration, two: Declaration, task: str) -> None:
    """Refuse studies of a task that was declared anew between them: their cells mean other things."""
    for name in ("candidates", "sizes", "unit"):
        mine, other = getattr(one, name).name, getattr(two, name).name
        if mine != other:
            raise StudyError(
                f"only studies of one declaration of task {task!r} can be compared: its {name} are {mine!r} "
                f"in one and {other!r} in the other"
            )


def spec_changes(pair: Pair, declared: Declaration) -> Iterator[tuple[str, str, str]]:
    """Yield name, the study's and the baseline's value of what the two cells' runs do not share.

    Of learning rates only their number counts: which one was chosen is a result.
    """
    one, two = dict(_facts(pair.study, declared)), dict(_facts(pair.baseline, declared))
    for name in dict.fromkeys([*one, *two]):
        values = one.get(name, "absent"), two.get(name, "absent")
        if values[0] != values[1]:
            yield (name, *values)


def _key(cell: Cell) -> tuple[str, str, int]:
    return cell.candidate, cell.setting, cell.size


def _facts(cell: Cell, declared: Declaration) -> Iterator[tuple[str, str]]:
    """Everything that decides the results of a cell, by dotted name, as JSON."""
    spec = cell.runs[0].spec
    definition = spec.definition
    if not isinstance(definition, Mapping):
        definition = {str(index): part for index, part in enumerate(definition)}
    yield from _flat(declared.definition, definition)
    for name in ("setting", "training", "model"):
        yield from _flat(name, getattr(spec, name))
    yield "seeds", ", ".join(str(seed) for seed in sorted(run.spec.seed for run in cell.runs))
    yield "number of learning rates", str(cell.num_rates)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flat(f"{name}.{key}", entry)
    else:
        yield name, canonical_json(value)
