"""Does recall predict the gap on text? Two studies of the same mixers, compared by ranks.

The claim is that of Zoology, arXiv:2312.04927: accuracy on synthetic associative recall predicts how far a
language model is behind attention. With the handful of mixers of one study this is a question of chance
first, so every correlation comes with the probability that random pairs of ranks would be as extreme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gatework.page.frame import fill_template
from gatework.page.quantities import format_quality, listed
from gatework.study.page_data import triple
from gatework.study.sections.recall_gap import gap_lines, gap_range
from gatework.study.sections.recall_gap_cells import GapCell, SliceName, TextGap, text_gap
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Choice, Spread, Summary

_TITLE = "Does recall predict the text gap?"
#: Up to so many mixers, every permutation is tried.
EXACT_UP_TO = 9
_SAMPLES = 100_000
#: Below this probability a correlation is not called chance.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Correlation:
    """A rank correlation.

    Attributes:
        rho: Spearman's coefficient, with mean ranks for ties.
        p_value: How often random pairs of the ranks are as far from zero, on either side.
        count: Number of mixers.
        exact: Whether all permutations were tried, or a fixed random sample of them.
    """

    rho: float
    p_value: float
    count: int
    exact: bool


@dataclass(frozen=True)
class PredictionPoint:
    """A mixer in both studies.

    Attributes:
        mixer: Its label.
        recall: Accuracy on recall, mean over the settings; its spread is that of the seeds.
        recall_width: Width at which it was reached.
        gap_cell: The mixer on text.
    """

    mixer: str
    recall: Spread
    recall_width: int
    gap_cell: GapCell

    def gap(self, name: SliceName) -> Spread | None:
        """Return the gap on text in nats per token of the slice."""
        return self.gap_cell.gap(name)


@dataclass(frozen=True)
class Prediction:
    """The mixers of a text study and of the recall study that accompanies it.

    Attributes:
        gap: The text study.
        recall: The recall study.
        points: Every mixer with a result in both, in the order of the text study.
        left_out: Labels of the text study's mixers that one of the two has no comparable result of.
    """

    gap: TextGap
    recall: Summary
    points: Sequence[PredictionPoint]
    left_out: Sequence[str]

    @cached_property
    def whole(self) -> Correlation | None:
        """Recall against the whole gap; None for fewer than three mixers, or if one of them is constant."""
        return self._correlation("overall")

    @cached_property
    def on_hits(self) -> Correlation | None:
        """Recall against the gap on AR hits, likewise."""
        return self._correlation("ar_hits")

    def pairs(self, name: SliceName) -> list[tuple[PredictionPoint, float, float]]:
        """Return every point with its recall, larger being better, and its gap."""
        return [
            (point, self.recall.goodness(point.recall.mean), gap.mean)
            for point in self.points
            if (gap := point.gap(name)) is not None
        ]

    @cached_property
    def outliers(self) -> list[tuple[PredictionPoint, int, int]]:
        """Points with the largest difference of ranks, of at least 2, with their two places (1 is best).

        The places are by recall and by the whole gap, the smallest being first.
        """
        from scipy.stats import rankdata

        pairs = self.pairs("overall")
        by_recall = rankdata([-recall for _, recall, _ in pairs])
        by_gap = rankdata([gap for _, _, gap in pairs])
        distances = [abs(one - two) for one, two in zip(by_recall, by_gap, strict=True)]
        largest = max(distances, default=0.0)
        if largest < 2:
            return []
        return [
            (point, round(one), round(two))
            for (point, _, _), one, two, distance in zip(pairs, by_recall, by_gap, distances, strict=True)
            if distance == largest
        ]

    def _correlation(self, name: SliceName) -> Correlation | None:
        pairs = self.pairs(name)
        return spearman([recall for _, recall, _ in pairs], [gap for _, _, gap in pairs])


class RecallPredictionSection(Section):
    """A point per mixer: its recall, and its gap on text; or how to get such a figure."""

    name = "recall_prediction"
    script = "recall_prediction.js"

    @cached_property
    def prediction(self) -> Prediction | None:
        """Both studies together; None without the one on recall."""
        recall = self.summary.companion
        return None if recall is None else predict(text_gap(self.summary), recall)

    def html(self) -> str:
        """Return the figure, or how to find out; nothing where neither study has anything to say."""
        if self.prediction is not None:
            finding = " ".join(prediction_sentences(self.prediction))
            notes = _notes(self.prediction)
            caption = _caption(self.prediction)
            return figure_html("prediction", _TITLE, caption, is_wide=True, finding=finding, notes=notes)
        if not text_gap(self.summary).has_slices:
            return ""
        return fill_template("study/page/no_recall.html", {"title": _TITLE})

    def data(self) -> dict[str, Any] | None:
        """Return the panels and their points."""
        return None if self.prediction is None else prediction_data(self.prediction)

    def findings(self) -> list[str]:
        """Say in words whether recall predicts the gap."""
        return [] if self.prediction is None else prediction_sentences(self.prediction)[:2]


def predict(gap: TextGap, recall: Summary) -> Prediction:
    """Bring a study on text and the recall study of the same mixers together.

    The text's mixers are those of its widest models in the setting where they differ most. A mixer's recall
    is its accuracy at the same width or, if the recall study has no such width, at the one where it is best.
    Only mixers without a diverged seed, and with a result in every setting of the recall study, take part.
    """
    width = gap.focus[1]
    same = width in recall.sizes
    best: dict[str, Choice] = {}
    for choice in recall.choices:  # best first
        if not same or choice.size == width:
            best.setdefault(choice.candidate, choice)
    points = [
        PredictionPoint(cell.cell.candidate, found.quality, found.size, cell)
        for cell in gap.focused
        if (found := best.get(cell.cell.candidate)) is not None and cell.gap() is not None
    ]
    known = {point.mixer for point in points}
    return Prediction(gap, recall, points, [label for label in gap.summary.candidates if label not in known])


def prediction_sentences(prediction: Prediction) -> list[str]:
    """Say in words whether recall predicts the gap, with how many mixers, and which stand out."""
    if prediction.gap.base is None:
        return ["No mixer on text is attention in all of its layers, so there is no gap to predict."]
    number = len(prediction.points)
    whole = prediction.whole
    if whole is None:
        return [_no_correlation(number)]
    on_hits = prediction.on_hits
    sentence = (
        f"With {whole.count} mixers, the rank correlation between {prediction.recall.quality.name} on recall "
        f"and the gap on text is {_rho(whole, _method(whole))}"
    )
    if on_hits is not None:
        sentence += f", and {_rho(on_hits)} with the gap on AR hits"
    return [f"{sentence}.", _verdict(whole), *_outlier_sentence(prediction)]


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Return the rank correlation of two lists; None for fewer than three pairs, or if one is constant.

    ``rho`` is the correlation of the ranks, ``p_value`` the share of permutations of one list whose ``|rho|``
    is no smaller: of all of them for up to :data:`EXACT_UP_TO` pairs, else of a sample with a fixed seed, to
    which the observed order belongs, so that it is never zero.
    """
    from scipy import stats

    count = len(x)
    if count < 3 or len({*x}) == 1 or len({*y}) == 1:
        return None
    # Ranks and their mean are multiples of a half, so that sums of their products are exact, and ties are.
    one, two = (stats.rankdata(values) - (count + 1) / 2 for values in (x, y))
    exact = count <= EXACT_UP_TO
    test = stats.permutation_test(
        (one,),
        # Up to a factor that no order changes, |rho|.
        lambda orders, axis: abs((orders * two).sum(axis)),
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=math.inf if exact else _SAMPLES,
        rng=0,
    )
    rho = stats.spearmanr(x, y).statistic
    return Correlation(float(rho), float(test.pvalue), count, exact)


def _no_correlation(number: int) -> str:
    if number < 3:
        mixers = {0: "no mixer", 1: "one mixer"}.get(number, f"{number} mixers")
        return f"With {mixers} measured in both studies, nothing can be said of a correlation."
    return f"All {number} mixers are equal in one of the two, so there is no correlation."


def _method(found: Correlation) -> str:
    return "exact permutation test: " if found.exact else "permutation test: "


def _rho(found: Correlation, method: str = "") -> str:
    probability = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    return f"{found.rho:.2f}".replace("-", "−") + f" ({method}{probability})"


def _verdict(found: Correlation) -> str:
    if found.p_value >= SIGNIFICANT:
        few = ", and no order of so few could" if math.factorial(found.count) < 40 else ""
        return f"That can be chance: these mixers do not show that recall predicts the gap{few}."
    if found.rho < 0:
        return "Among these, mixers that recall better are closer to attention on text."
    return "Among these, mixers that recall better are further from attention on text: against the claim."


def _outlier_sentence(prediction: Prediction) -> list[str]:
    outliers = prediction.outliers
    if not outliers:
        return []
    texts = [
        f"{point.mixer} ({_place(one)} by recall, {_place(two)} on text)" for point, one, two in outliers
    ]
    more = f" and {len(texts) - 3} others" if len(texts) > 3 else ""
    return [f"Out of line most {'is' if len(texts) == 1 else 'are'} {listed(texts[:3])}{more}."]


def _place(rank: int) -> str:
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"


def describe_recall(point: PredictionPoint, recall: Summary) -> str:
    """Write a point's recall with its width and spread."""
    spread = point.recall
    of = ""
    if spread.count > 1:
        low, high = format_quality(spread.low), format_quality(spread.high)
        of = f" ({low} to {high}, {spread.count} seeds)"
    return f"{recall.quality.name} on recall {format_quality(spread.mean)}{of} at width {point.recall_width}"


def prediction_data(prediction: Prediction) -> dict[str, Any]:
    """Collect what the script of the figure draws."""
    recall, points = prediction.recall, prediction.points
    to = f"gap to {prediction.gap.base or 'attention'} in nats per"
    panels: list[dict[str, Any]] = [_panel("The whole gap", f"{to} token", "overall", points)]
    if prediction.gap.has_slices:
        panels.append(_panel("The gap on AR hits", f"{to} AR hit", "ar_hits", points))
    low, high = recall.quality.range or (0.0, 1.0)
    if recall.quality.range is None:
        values = [value for point in points for value in (point.recall.low, point.recall.high)]
        low, high = (min(values), max(values)) if values else (low, high)
    pad = 0.05 * (high - low) or 0.5
    return {
        "x_title": f"{recall.quality.name} on recall",
        "x_range": [low - pad, high + pad],
        "panels": panels,
        "points": [
            {
                "series": prediction.gap.summary.candidates.index(point.mixer),
                "recall": triple(point.recall),
                "overall": triple(point.gap("overall")),
                "ar_hits": triple(point.gap("ar_hits")),
                "hover": [
                    point.mixer,
                    describe_recall(point, recall),
                    *gap_lines(prediction.gap, point.gap_cell),
                ],
            }
            for point in points
        ],
    }


def _panel(title: str, axis: str, name: SliceName, points: Iterable[PredictionPoint]) -> dict[str, Any]:
    spreads = [point.gap(name) for point in points]
    return {"title": f"{title} against recall", "y_title": axis, "key": name, "y_range": gap_range(spreads)}


def _caption(prediction: Prediction) -> str:
    """What a point is, and what to look for."""
    gap, recall = prediction.gap, prediction.recall
    setting, width = gap.focus
    where = f"at width {width}" + (f" in {setting}" if len(gap.summary.settings) > 1 else "")
    over = f", mean over its {len(recall.settings)} settings" if len(recall.settings) > 1 else ""
    reached = f"at width {width}" if width in recall.sizes else "at the width where it is best"
    hits = " One panel has the whole gap, one the gap on AR hits alone." if gap.has_slices else ""
    return (
        f"Each point is a mixer: its {recall.quality.name} in the recall study beside this one{over}, "
        f"{reached}, to the right; its gap to {gap.base or 'attention'} on text {where} upwards.{hits} If "
        "recall predicts the gap, points fall from the upper left to the lower right. Bars reach from the "
        "worst to the best seed."
    )


def _notes(prediction: Prediction) -> list[str]:
    """What the recall study is, and who is not in the figure."""
    recall = prediction.recall
    seeds = len({run.spec.seed for run in recall.runs})
    settings = ", ".join(recall.settings)
    notes = [
        f"Recall: {recall.count('finished')} of {len(recall.runs)} runs finished, {seeds} "
        f"seed{'s' * (seeds != 1)}, {settings}; its own page is report.html in this study's folder recall."
    ]
    if prediction.left_out:
        plural = "are" if len(prediction.left_out) > 1 else "is"
        notes.append(
            f"{listed(prediction.left_out)} {plural} left out: one of the two studies has no result of every "
            "seed and setting."
        )
    return notes
