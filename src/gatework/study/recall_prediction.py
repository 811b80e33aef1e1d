"""Does recall predict the gap on text? Two studies of the same mixers, compared by ranks.

The claim is that of Zoology, arXiv:2312.04927: accuracy on synthetic associative recall predicts how far a
language model is behind attention. With the handful of mixers of one study this is a question of chance
first, so every correlation comes with the probability that random pairs of ranks would be as extreme.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gatework.page.quantities import format_quality
from gatework.study.gap_answer import listed
from gatework.study.recall_gap import GapCell, SliceName, TextGap
from gatework.study.summary import Candidate, Spread, Summary

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
        pairs = self.pairs("overall")
        by_recall = ranks([-recall for _, recall, _ in pairs])
        by_gap = ranks([gap for _, _, gap in pairs])
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


def predict(gap: TextGap, recall: Summary) -> Prediction:
    """Bring a study on text and the recall study of the same mixers together.

    The text's mixers are those of its widest models in the setting where they differ most. A mixer's recall
    is its accuracy at the same width or, if the recall study has no such width, at the one where it is best.
    Only mixers without a diverged seed, and with a result in every setting of the recall study, take part.
    """
    width = gap.focus[1]
    same = width in recall.widths
    best: dict[str, Candidate] = {}
    for candidate in recall.candidates:  # best first
        if not same or candidate.width == width:
            best.setdefault(candidate.mixer, candidate)
    points = [
        PredictionPoint(cell.cell.mixer, found.quality, found.width, cell)
        for cell in gap.focused
        if (found := best.get(cell.cell.mixer)) is not None and cell.gap() is not None
    ]
    known = {point.mixer for point in points}
    return Prediction(gap, recall, points, [mixer for mixer in gap.summary.mixers if mixer not in known])


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
    is no smaller: of all of them for up to :data:`EXACT_UP_TO` pairs, else of a sample with a fixed seed.
    """
    count = len(x)
    one, two = _centred(ranks(x)), _centred(ranks(y))
    scale = math.sqrt(sum(value**2 for value in one) * sum(value**2 for value in two))
    if count < 3 or scale == 0:
        return None
    product = sum(a * b for a, b in zip(one, two, strict=True))
    exact = count <= EXACT_UP_TO
    share = _exact_share(one, two, abs(product)) if exact else _sampled_share(one, two, abs(product))
    return Correlation(product / scale, share, count, exact)


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, 1 for the smallest; equal ones share the mean of their ranks."""
    found = []
    for value in values:
        below, same = sum(other < value for other in values), sum(other == value for other in values)
        found.append(below + (same + 1) / 2)
    return found


def _centred(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values) if values else 0.0
    return [value - mean for value in values]


def _exact_share(one: Sequence[float], two: Sequence[float], product: float) -> float:
    """The share of all permutations whose sum of products is as far from zero."""
    import numpy as np

    orders = np.array(list(itertools.permutations(range(len(two)))), dtype=np.int8)
    sums = np.asarray(two)[orders] @ np.asarray(one)
    return float(np.mean(np.abs(sums) >= product - 1e-9))


def _sampled_share(one: Sequence[float], two: Sequence[float], product: float) -> float:
    """The same over a random sample, to which the observed order belongs, so that it is never zero."""
    import numpy as np

    generator = np.random.default_rng(0)
    sums = generator.permuted(np.tile(np.asarray(two), (_SAMPLES, 1)), axis=1) @ np.asarray(one)
    return float((1 + np.sum(np.abs(sums) >= product - 1e-9)) / (1 + _SAMPLES))


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
