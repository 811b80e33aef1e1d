"""What the runs of a study say together: seeds averaged, learning rates chosen, candidates compared.

A *cell* is one mixer in one setting at one width; its seeds are averaged at the learning rate that is best on
the validation data, and what is reported of them is the quality on test data, on which nothing is chosen. A
*candidate* is one mixer at one width, averaged over the settings: what a reader could choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeVar

from gatework.study.spec import RunSpec, StudySpec
from gatework.tasks.task import Quality

STATUSES = ("finished", "diverged", "failed", "missing")
_COSTS = (
    "state_bytes",
    "published_state_bytes",
    "activation_bytes",
    "tokens_per_second",
    "parameters",
    "training_flops",
)

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

    @property
    def decoding(self) -> Mapping[int, Mapping[str, Any]]:
        """What was measured of decoding, by length of context; nothing where it was not."""
        measured = ((self.result or {}).get("decoding") or {}).get("measured", ())
        return {row["context"]: row for row in measured}

    @property
    def decoding_stopped(self) -> str | None:
        """Why decoding was not measured at longer contexts that were asked for."""
        stopped: str | None = ((self.result or {}).get("decoding") or {}).get("stopped")
        return stopped

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
    """One mixer in one setting at one width, at the learning rate that is best on validation data.

    Attributes:
        mixer: Label of the mixer.
        setting: Name of the setting.
        width: Number of channels.
        runs: The seeds of the learning rate that was chosen.
        num_rates: How many learning rates there were to choose from.
        num_unstable_rates: At how many of them a seed diverged.
    """

    mixer: str
    setting: str
    width: int
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

    @cached_property
    def decoding(self) -> dict[int, Spread]:
        """Tokens per second of decoding over the seeds, by length of context."""
        return self._decoded("tokens_per_second")

    @cached_property
    def decoding_state(self) -> dict[int, Spread]:
        """Bytes that decoding carries, by length of context."""
        return self._decoded("state_bytes")

    def _decoded(self, name: str) -> dict[int, Spread]:
        contexts = sorted({context for run in self.runs for context in run.decoding})
        found = {
            context: Spread.of(run.decoding.get(context, {}).get(name) for run in self.runs)
            for context in contexts
        }
        return {context: spread for context, spread in found.items() if spread is not None}

    def count(self, status: str) -> int:
        """Return how many seeds ended (or not) with that status."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True)
class Candidate:
    """One mixer at one width over all settings: something a reader could choose.

    Attributes:
        mixer: Label of the mixer.
        width: Number of channels.
        quality: On test data, mean over settings; its spread is that of the seeds, each averaged over the
            settings.
        state_bytes: Decoding state, in the setting where it is largest.
        published_state_bytes: The same as the mixers' papers count it, if they do.
        activation_bytes: Memory kept for the backward pass, in the setting where it is largest.
        tokens_per_second: Training throughput, mean over settings.
        parameters: Trainable parameters, in the setting where they are most.
        training_flops: Floating-point operations of one whole run, in the setting where they are most.
    """

    mixer: str
    width: int
    quality: Spread
    state_bytes: float | None
    published_state_bytes: float | None
    activation_bytes: float | None
    tokens_per_second: float | None
    parameters: float | None
    training_flops: float | None


@dataclass(frozen=True)
class Summary:
    """A study with its results.

    Attributes:
        study: The study.
        runs: Every run of its grid, in the order of the grid.
        num_foreign: Results that belong to no run of the grid, and are left out.
    """

    study: StudySpec
    runs: Sequence[Run]
    num_foreign: int

    @property
    def quality(self) -> Quality:
        """What the headline number is."""
        return self.study.quality

    @cached_property
    def mixers(self) -> list[str]:
        """Labels of the mixers, in the order of the grid."""
        return list(dict.fromkeys(run.spec.mixer for run in self.runs))

    @cached_property
    def settings(self) -> list[str]:
        """Names of the settings, in the order of the grid."""
        return list(dict.fromkeys(run.spec.setting_name for run in self.runs))

    @cached_property
    def widths(self) -> list[int]:
        """All widths, growing."""
        return sorted({run.spec.width for run in self.runs})

    @cached_property
    def clearest_setting(self) -> int:
        """Position of the setting in which the mixers differ most: the one worth showing first."""

        def spread(setting: str) -> float:
            values = [cell.quality.mean for cell in self.cells if cell.setting == setting and cell.quality]
            return max(values) - min(values) if values else -1.0

        return max(range(len(self.settings)), key=lambda index: spread(self.settings[index]))

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of the grid, in its order."""
        groups = _group(self.runs, lambda run: (run.spec.mixer, run.spec.setting_name, run.spec.width))
        return [
            self._best_cell(mixer, setting, width, runs) for (mixer, setting, width), runs in groups.items()
        ]

    @cached_property
    def decode_contexts(self) -> list[int]:
        """Lengths of context at which decoding was measured in any run, growing."""
        return sorted({context for run in self.runs for context in run.decoding})

    @property
    def has_rate_choice(self) -> bool:
        """Whether any cell had more than one learning rate to choose from."""
        return any(cell.num_rates > 1 for cell in self.cells)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Every mixer and width with a finished seed in each setting and no diverged one, best first."""
        groups = _group(self.cells, lambda cell: (cell.mixer, cell.width))
        found = (self._candidate(cells) for cells in groups.values())
        return sorted(
            (entry for entry in found if entry), key=lambda entry: -self.goodness(entry.quality.mean)
        )

    @property
    def unstable(self) -> list[tuple[str, int]]:
        """Mixer and width wherever a seed diverged at the chosen learning rate."""
        found = ((cell.mixer, cell.width) for cell in self.cells if cell.count("diverged"))
        return list(dict.fromkeys(found))

    def count(self, status: str) -> int:
        """Return how many runs of the grid have that status."""
        return sum(run.status == status for run in self.runs)

    def goodness(self, quality: float) -> float:
        """Return ``quality`` with the sign that makes larger better."""
        return quality if self.quality.better == "higher" else -quality

    def _best_cell(self, mixer: str, setting: str, width: int, runs: Sequence[Run]) -> Cell:
        """Choose the learning rate by its mean on validation data, never by what it reached on test data.

        A rate of which a seed diverged comes after all others, because survivors flatter; one of which no
        validation quality is known is chosen only if there is no other.
        """
        by_rate = _group(runs, lambda run: run.spec.learning_rate)
        unstable = sum(any(run.status == "diverged" for run in group) for group in by_rate.values())
        cells = [Cell(mixer, setting, width, group, len(by_rate), unstable) for group in by_rate.values()]

        def rank(cell: Cell) -> tuple[bool, bool, bool, float]:
            mean = self.goodness(cell.validation.mean) if cell.validation else 0.0
            known = cell.validation is not None
            return known, cell.quality is not None, not cell.count("diverged"), mean

        return max(cells, key=rank)

    def _candidate(self, cells: Sequence[Cell]) -> Candidate | None:
        """Average one mixer at one width over the settings; None if it cannot be compared in all of them."""
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
        costs = {name: [cell.cost(name) for cell in cells] for name in _COSTS}
        largest = {name: _over(spreads, max) for name, spreads in costs.items()}
        largest["tokens_per_second"] = _over(costs["tokens_per_second"], fmean)
        return Candidate(cells[0].mixer, cells[0].width, quality, **largest)


def summarise(study: StudySpec, results: Mapping[str, Mapping[str, Any]]) -> Summary:
    """Bring a study and its stored results together.

    Args:
        study: The study.
        results: Results by run id; those of runs outside the grid are counted and left out.
    """
    runs = [Run(spec, results.get(spec.run_id)) for spec in study.runs]
    return Summary(study, runs, len(set(results) - {spec.run_id for spec in study.runs}))


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
