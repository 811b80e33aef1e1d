"""The answer of a study in words: what is best, what is cheapest, and what each choice gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gatework.page.quantities import FORMATS, format_quality, format_rate, format_ratio, listed
from gatework.study.improving import is_improving
from gatework.study.sections import page_sections
from gatework.study.summary import Choice, Spread, Summary
from gatework.tasks.task import Quality

# How much of the best quality a cheaper choice may lose and still count as "as good".
MARGIN = 0.02
# A gap below this is printed as 0.000 and called none.
_VISIBLE = 0.0005


@dataclass(frozen=True)
class Pick:
    """One recommended choice.

    Attributes:
        roles: Why it is named, such as ``"Best accuracy"``; one choice may have several.
        choice: The choice.
    """

    roles: Sequence[str]
    choice: Choice


@dataclass(frozen=True)
class Answer:
    """What a study says to somebody who has to choose.

    Attributes:
        sentences: The answer in plain text, the most important first.
        findings: What the sections of the page found, such as those of a task of its own.
        caveats: Sentences on what limits it: what diverged, absent runs, a single seed.
        picks: The choices it names, best quality first.
    """

    sentences: Sequence[str]
    caveats: Sequence[str]
    picks: Sequence[Pick]
    findings: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The answer with its findings and caveats, as one paragraph."""
        return " ".join([*self.sentences, *self.findings, *self.caveats])


def answer(summary: Summary) -> Answer:
    """Say what a study found, and what limits that.

    First which choice is best, which is smallest and which is fastest, what choosing those gives up, and what
    was still improving when its training ended. Only choices with a finished seed in every setting and no
    diverged one are named: averages over fewer settings, or over the seeds that survived, would flatter. Then
    whatever the sections of the page found.
    """
    sections = [kind(summary) for kind in page_sections(summary.declared)]
    sentences, picks = _choices(summary)
    return Answer(
        [*sentences, *_improving_sentence(summary)],
        [*_caveats(summary), *(text for section in sections for text in section.caveats())],
        picks,
        [text for section in sections for text in section.findings()],
    )


def _choices(summary: Summary) -> tuple[list[str], list[Pick]]:
    """Which one to choose: what is said of it, and the choices that are named."""
    choices, cost = summary.choices, summary.declared.lean_cost
    if not choices:
        return [_no_choice(summary)], []
    best = choices[0]
    if len(choices) == 1:
        only = "Nothing else was measured that it could be compared with."
        return [_best_sentence(summary, best), only], [Pick(("The only choice",), best)]
    close = [entry for entry in choices if _gap(summary, best, entry) <= _margin(best)]
    known = [entry for entry in close if entry.costs[cost.key] is not None]
    lean = min(known, key=lambda entry: entry.costs[cost.key] or 0.0, default=None)
    quick = max((entry for entry in close if entry.rate is not None), key=_rate, default=None)
    quickest = max((entry for entry in choices if entry.rate is not None), key=_rate, default=None)
    sentences = [_best_sentence(summary, best), *_tied_sentence(summary, best)]
    if lean:
        sentences.append(_lean_sentence(summary, best, lean))
    if quick and quickest:
        sentences.append(_speed_sentence(summary, best, quick, quickest))
    chosen = {
        f"Best {summary.quality.name}": best,
        f"Smallest {cost.noun} within {MARGIN:.0%}": lean,
        f"Fastest within {MARGIN:.0%}": quick if quick is not quickest else None,
        "Fastest of all": quickest,
    }
    return sentences, _picks(chosen)


def describe_spread(spread: Spread, unit: str = "") -> str:
    """Write a mean with the range over its seeds: ``0.998 (0.996 to 0.999, 2 seeds)``."""
    if spread.count < 2:
        return f"{format_quality(spread.mean, unit)} (one seed)"
    low, high = format_quality(spread.low), format_quality(spread.high)
    return f"{format_quality(spread.mean, unit)} ({low} to {high}, {spread.count} seeds)"


def quality_unit(quality: Quality) -> str:
    """Return the unit to print behind a quality: none if its name already says it."""
    return "" if quality.unit == quality.name else quality.unit


def _best_sentence(summary: Summary, best: Choice) -> str:
    quality = summary.quality
    reached = describe_spread(best.quality, quality_unit(quality))
    over = f", averaged over the {len(summary.settings)} settings" if len(summary.settings) > 1 else ""
    sentence = f"The best {quality.name}, {reached}, comes from {_name(summary, best)}{over}"
    if quality.chance is not None:
        above = summary.goodness(best.quality.mean) - summary.goodness(quality.chance)
        if above <= MARGIN * abs(best.quality.mean):
            sentence += f"; this is no better than chance ({format_quality(quality.chance)})"
    return f"{sentence}."


def _tied_sentence(summary: Summary, best: Choice) -> list[str]:
    """Name those whose seeds overlap with the best one's: calling them worse would be reading noise."""
    if best.quality.count < 2:
        return []
    worst_seed = min(summary.goodness(best.quality.low), summary.goodness(best.quality.high))
    tied = [
        (entry.candidate, entry.size)
        for entry in summary.choices[1:]
        if max(summary.goodness(entry.quality.low), summary.goodness(entry.quality.high)) >= worst_seed
    ]
    if not tied:
        return []
    return [f"By quality alone it cannot be told apart from {_names(summary, tied)}: their seeds overlap."]


def _lean_sentence(summary: Summary, best: Choice, lean: Choice) -> str:
    """Name the smallest of those that are nearly as good, by the cost that the task names."""
    cost = summary.declared.lean_cost
    write, _ = FORMATS[cost.format]
    margin = f"{MARGIN:.0%} of that ({format_quality(_margin(best))})"
    small, large = lean.costs[cost.key], best.costs[cost.key]
    if lean is best or large is None or small is None:
        return f"Nothing within {margin} has a smaller {cost.noun} than its {write(small)}."
    ratio = f" ({format_ratio(large / small)} smaller)" if small else ""
    return (
        f"The smallest {cost.noun} within {margin} is that of {_name(summary, lean)}: {write(small)} instead "
        f"of {write(large)}{ratio}, at {_price(summary, best, lean)}."
    )


def _speed_sentence(summary: Summary, best: Choice, quick: Choice, quickest: Choice) -> str:
    units = summary.declared.unit.plural
    if quickest is best:
        return f"It is also the fastest to train, at {format_rate(best.rate, units)}."
    sentence = (
        f"The fastest to train is {_name(summary, quickest)}: {format_rate(quickest.rate, units)}"
        f"{_times(quickest, best)}, at {_price(summary, best, quickest)}"
    )
    if quick is quickest:
        return f"{sentence}."
    if quick is best:
        return f"{sentence}; within the {MARGIN:.0%}, nothing is faster than the best one itself."
    return (
        f"{sentence}; within the {MARGIN:.0%} it is {_name(summary, quick)}, with "
        f"{format_rate(quick.rate, units)}{_times(quick, best)}."
    )


def _improving_sentence(summary: Summary) -> list[str]:
    """Name the choices that were still improving when their training ended, so that none is called worse."""
    found = {
        (cell.candidate, cell.size)
        for cell in summary.cells
        if cell.quality is not None and is_improving(cell.runs, summary.quality)
    }
    choices = [(entry.candidate, entry.size) for entry in summary.choices]
    improving = [choice for choice in choices if choice in found]
    if not improving:
        return []
    where = " in at least one setting" if len(summary.settings) > 1 else ""
    if len(choices) == 1:
        return [f"It was still improving{where} when its budget ended; with more training it may get better."]
    if len(improving) == len(choices):
        return [
            f"Everything that is ranked here was still improving{where} when its budget ended; with more "
            "training the order may change."
        ]
    names = _names(summary, improving)
    if improving == choices[:1]:
        return [
            f"{names} was still improving{where} when its budget ended; with more training it may get better."
        ]
    its, they = ("its", "it") if len(improving) == 1 else ("their", "they")
    return [
        f"Still improving{where} when {its} budget ended: {names}; with more training {they} may rank higher."
    ]


def _no_choice(summary: Summary) -> str:
    if not summary.count("finished"):
        return "No run has finished, so there is no answer yet."
    return (
        f"No {summary.declared.candidates.name} has finished every setting without a diverged seed, so there "
        "is no overall answer; the figures show what there is."
    )


def _caveats(summary: Summary) -> list[str]:
    """What limits the answer: what diverged and is left out, runs that are not there, a single seed."""
    caveats: list[str] = []
    if summary.unstable:
        caveats.append(f"Left out, because a seed diverged: {_names(summary, summary.unstable)}.")
    absent = summary.count("failed") + summary.count("missing")
    if absent and summary.count("finished"):
        verb = "is" if absent == 1 else "are"
        caveats.append(
            f"{absent} of {len(summary.runs)} runs failed or {verb} missing, so this is preliminary."
        )
    if summary.choices and max(entry.quality.count for entry in summary.choices) < 2:
        caveats.append("With one seed each, small differences may be chance.")
    return caveats


def _picks(chosen: dict[str, Choice | None]) -> list[Pick]:
    """One pick per choice, with all of its roles."""
    roles: dict[int, list[str]] = {}
    choices = {id(choice): choice for choice in chosen.values() if choice}
    for role, choice in chosen.items():
        if choice:
            roles.setdefault(id(choice), []).append(role)
    return [Pick(tuple(roles[key]), choices[key]) for key in roles]


def _margin(best: Choice) -> float:
    return MARGIN * abs(best.quality.mean)


def _gap(summary: Summary, best: Choice, other: Choice) -> float:
    """How much worse the other is, in units of the quality."""
    return summary.goodness(best.quality.mean) - summary.goodness(other.quality.mean)


def _price(summary: Summary, best: Choice, other: Choice) -> str:
    """Write what choosing ``other`` gives up: ``0.012 lower accuracy``."""
    quality = summary.quality
    gap = _gap(summary, best, other)
    if gap < _VISIBLE:
        return f"the same {quality.name}"
    direction = "lower" if quality.better == "higher" else "higher"
    return f"{format_quality(gap, quality_unit(quality))} {direction} {quality.name}"


def _times(other: Choice, best: Choice) -> str:
    if not other.rate or not best.rate:
        return ""
    return f" ({format_ratio(other.rate / best.rate)} as fast as the best)"


def _rate(choice: Choice) -> float:
    assert choice.rate is not None
    return choice.rate


def _name(summary: Summary, choice: Choice) -> str:
    return f"{choice.candidate} at {summary.declared.sizes.name} {choice.size}"


def _names(summary: Summary, choices: Sequence[tuple[str, int]], most: int = 4) -> str:
    """List candidates with their sizes: ``vit at size 32 and hornet at sizes 64 and 32``."""
    named, sized = summary.declared.candidates, summary.declared.sizes
    sizes: dict[str, list[str]] = {}
    for candidate, size in choices:
        sizes.setdefault(candidate, []).append(str(size))
    names = [
        f"{candidate} at {sized.name if len(at) == 1 else sized.plural} {listed(at)}"
        for candidate, at in sizes.items()
    ]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} other {named.plural}"]
    return listed(names)
