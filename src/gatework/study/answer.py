"""The answer of a study in words: what is best, what is cheapest, and what each choice gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gatework.page.quantities import format_bytes, format_quality, format_rate, format_ratio
from gatework.study.gap_answer import gap_sentences
from gatework.study.recall_gap import text_gap
from gatework.study.recall_prediction import predict, prediction_sentences
from gatework.study.summary import Candidate, Spread, Summary
from gatework.tasks.task import Quality

# How much of the best quality a cheaper choice may lose and still count as "as good".
MARGIN = 0.02
# A gap below this is printed as 0.000 and called none.
_VISIBLE = 0.0005


@dataclass(frozen=True)
class Pick:
    """One recommended choice.

    Attributes:
        roles: Why it is named, such as ``"Best accuracy"``; one candidate may have several.
        candidate: The choice.
    """

    roles: Sequence[str]
    candidate: Candidate


@dataclass(frozen=True)
class Answer:
    """What a study says to somebody who has to choose.

    Attributes:
        sentences: The answer in plain text, the most important first.
        findings: On text: where the gap to attention lies, and whether recall predicts it.
        caveats: Sentences on what limits it: unstable mixers, absent runs, a single seed.
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


def answer(summary: Summary, recall: Summary | None = None) -> Answer:
    """Say what a study found, and what limits that.

    First which mixer is best, which is smallest and which is fastest, and what choosing those gives up. Only
    candidates with a finished seed in every setting and no diverged one are named: averages over fewer
    settings, or over the seeds that survived, would flatter. Then, of a study on text, where its gap to
    attention lies.

    Args:
        summary: The study.
        recall: The recall study that accompanies a study on text: does recall predict the gap?
    """
    choices = _choices(summary)
    gap = text_gap(summary)
    if gap is None:
        return choices
    findings = gap_sentences(gap)
    if recall is not None:
        findings += prediction_sentences(predict(gap, recall))[:2]
    return replace(choices, findings=findings)


def _choices(summary: Summary) -> Answer:
    """Which mixer to choose."""
    if not summary.candidates:
        return Answer([_no_candidate(summary)], _caveats(summary), [])
    best = summary.candidates[0]
    if len(summary.candidates) == 1:
        only = "Nothing else was measured that it could be compared with."
        return Answer(
            [_best_sentence(summary, best), only], _caveats(summary), [Pick(("The only choice",), best)]
        )
    close = [entry for entry in summary.candidates if _gap(summary, best, entry) <= _margin(best)]
    lean = min(_known(close, "state_bytes"), key=_state, default=None)
    quick = max(_known(close, "tokens_per_second"), key=_rate, default=None)
    quickest = max(_known(summary.candidates, "tokens_per_second"), key=_rate, default=None)
    sentences = [_best_sentence(summary, best), *_tied_sentence(summary, best)]
    if lean:
        sentences.append(_state_sentence(summary, best, lean))
    if quick and quickest:
        sentences.append(_speed_sentence(summary, best, quick, quickest))
    chosen = {
        f"Best {summary.quality.name}": best,
        f"Smallest state within {MARGIN:.0%}": lean,
        f"Fastest within {MARGIN:.0%}": quick if quick is not quickest else None,
        "Fastest of all": quickest,
    }
    return Answer(sentences, _caveats(summary), _picks(chosen))


def describe_spread(spread: Spread, unit: str = "") -> str:
    """Write a mean with the range over its seeds: ``0.998 (0.996 to 0.999, 2 seeds)``."""
    if spread.count < 2:
        return f"{format_quality(spread.mean, unit)} (one seed)"
    low, high = format_quality(spread.low), format_quality(spread.high)
    return f"{format_quality(spread.mean, unit)} ({low} to {high}, {spread.count} seeds)"


def quality_unit(quality: Quality) -> str:
    """Return the unit to print behind a quality: none if its name already says it."""
    return "" if quality.unit == quality.name else quality.unit


def _best_sentence(summary: Summary, best: Candidate) -> str:
    quality = summary.quality
    reached = describe_spread(best.quality, quality_unit(quality))
    over = f", averaged over the {len(summary.settings)} settings" if len(summary.settings) > 1 else ""
    sentence = f"The best {quality.name}, {reached}, comes from {_name(best)}{over}"
    if quality.chance is not None:
        above = summary.goodness(best.quality.mean) - summary.goodness(quality.chance)
        if above <= MARGIN * abs(best.quality.mean):
            sentence += f"; this is no better than chance ({format_quality(quality.chance)})"
    return f"{sentence}."


def _tied_sentence(summary: Summary, best: Candidate) -> list[str]:
    """Name those whose seeds overlap with the best one's: calling them worse would be reading noise."""
    if best.quality.count < 2:
        return []
    worst_seed = min(summary.goodness(best.quality.low), summary.goodness(best.quality.high))
    tied = [
        (entry.mixer, entry.width)
        for entry in summary.candidates[1:]
        if max(summary.goodness(entry.quality.low), summary.goodness(entry.quality.high)) >= worst_seed
    ]
    if not tied:
        return []
    return [f"By quality alone it cannot be told apart from {_names(tied)}: their seeds overlap."]


def _state_sentence(summary: Summary, best: Candidate, lean: Candidate) -> str:
    margin = f"{MARGIN:.0%} of that ({format_quality(_margin(best))})"
    size = format_bytes(lean.state_bytes)
    if lean is best or best.state_bytes is None or lean.state_bytes is None:
        return f"Nothing within {margin} carries a smaller decoding state than its {size}."
    ratio = f" ({format_ratio(best.state_bytes / lean.state_bytes)} smaller)" if lean.state_bytes else ""
    return (
        f"The smallest decoding state within {margin} is that of {_name(lean)}: {size} instead of "
        f"{format_bytes(best.state_bytes)}{ratio}, at {_price(summary, best, lean)}."
    )


def _speed_sentence(summary: Summary, best: Candidate, quick: Candidate, quickest: Candidate) -> str:
    if quickest is best:
        return f"It is also the fastest to train, at {format_rate(best.tokens_per_second)}."
    sentence = (
        f"The fastest to train is {_name(quickest)}: {format_rate(quickest.tokens_per_second)}"
        f"{_times(quickest, best)}, at {_price(summary, best, quickest)}"
    )
    if quick is quickest:
        return f"{sentence}."
    if quick is best:
        return f"{sentence}; within the {MARGIN:.0%}, nothing is faster than the best one itself."
    return (
        f"{sentence}; within the {MARGIN:.0%} it is {_name(quick)}, with "
        f"{format_rate(quick.tokens_per_second)}{_times(quick, best)}."
    )


def _no_candidate(summary: Summary) -> str:
    if not summary.count("finished"):
        return "No run has finished, so there is no answer yet."
    return (
        "No mixer has finished every setting without a diverged seed, so there is no overall answer; "
        "the figures show what there is."
    )


def _caveats(summary: Summary) -> list[str]:
    """What limits the answer: unstable mixers left out, runs that are not there, a single seed."""
    caveats: list[str] = []
    if summary.unstable:
        caveats.append(f"Left out, because a seed diverged: {_names(summary.unstable)}.")
    absent = summary.count("failed") + summary.count("missing")
    if absent and summary.count("finished"):
        verb = "is" if absent == 1 else "are"
        caveats.append(
            f"{absent} of {len(summary.runs)} runs failed or {verb} missing, so this is preliminary."
        )
    if summary.candidates and max(entry.quality.count for entry in summary.candidates) < 2:
        caveats.append("With one seed each, small differences may be chance.")
    return caveats


def _picks(chosen: dict[str, Candidate | None]) -> list[Pick]:
    """One pick per candidate, with all of its roles."""
    roles: dict[int, list[str]] = {}
    candidates = {id(candidate): candidate for candidate in chosen.values() if candidate}
    for role, candidate in chosen.items():
        if candidate:
            roles.setdefault(id(candidate), []).append(role)
    return [Pick(tuple(roles[key]), candidates[key]) for key in roles]


def _margin(best: Candidate) -> float:
    return MARGIN * abs(best.quality.mean)


def _gap(summary: Summary, best: Candidate, other: Candidate) -> float:
    """How much worse the other is, in units of the quality."""
    return summary.goodness(best.quality.mean) - summary.goodness(other.quality.mean)


def _price(summary: Summary, best: Candidate, other: Candidate) -> str:
    """Write what choosing ``other`` gives up: ``0.012 lower accuracy``."""
    quality = summary.quality
    gap = _gap(summary, best, other)
    if gap < _VISIBLE:
        return f"the same {quality.name}"
    direction = "lower" if quality.better == "higher" else "higher"
    return f"{format_quality(gap, quality_unit(quality))} {direction} {quality.name}"


def _times(other: Candidate, best: Candidate) -> str:
    if not other.tokens_per_second or not best.tokens_per_second:
        return ""
    return f" ({format_ratio(other.tokens_per_second / best.tokens_per_second)} as fast as the best)"


def _known(candidates: Sequence[Candidate], cost: str) -> list[Candidate]:
    return [candidate for candidate in candidates if getattr(candidate, cost) is not None]


def _state(candidate: Candidate) -> float:
    assert candidate.state_bytes is not None
    return candidate.state_bytes


def _rate(candidate: Candidate) -> float:
    assert candidate.tokens_per_second is not None
    return candidate.tokens_per_second


def _name(candidate: Candidate) -> str:
    return f"{candidate.mixer} at width {candidate.width}"


def _names(choices: Sequence[tuple[str, int]], most: int = 4) -> str:
    """List mixers with their widths: ``based at width 32 and attention at widths 64 and 32``."""
    widths: dict[str, list[str]] = {}
    for mixer, width in choices:
        widths.setdefault(mixer, []).append(str(width))
    names = [f"{mixer} at width{'s' * (len(at) > 1)} {_list(at)}" for mixer, at in widths.items()]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} other mixers"]
    return _list(names)


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
