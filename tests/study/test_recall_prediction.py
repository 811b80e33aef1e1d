from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gatework.study.answer import answer
from gatework.study.report import read_summary
from gatework.study.sections.recall_gap_cells import text_gap
from gatework.study.sections.recall_prediction import predict, prediction_sentences, spearman
from tests.study.synthetic_gaps import GAPS, companion_study, gap_study

values = st.integers(-3, 3).map(float)  # ties are likely


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(values, values), min_size=3, max_size=5))
def test_rank_correlation_and_its_probability_are_those_of_all_orders(pairs):
    x, y = zip(*pairs, strict=True)
    found = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return
    one, two = stats.rankdata(x), stats.rankdata(y)
    expected = np.corrcoef(one, two)[0, 1]
    orders = [np.corrcoef(order, two)[0, 1] for order in itertools.permutations(one)]
    assert found.rho == pytest.approx(expected)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.p_value == pytest.approx(np.mean(np.abs(orders) >= abs(expected) - 1e-9))
    assert found.exact


def test_many_mixers_are_sampled_the_same_every_time():
    x = list(range(12))
    y = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10]
    found = spearman(x, y)
    assert not found.exact
    assert found.p_value == 1 / 100_001  # none of the sample is as extreme: never called impossible
    assert spearman(x, y) == found
    weak = spearman(x, [3, 9, 1, 7, 0, 11, 2, 8, 4, 10, 5, 6])
    assert weak.p_value == pytest.approx(
        stats.spearmanr(x, [3, 9, 1, 7, 0, 11, 2, 8, 4, 10, 5, 6]).pvalue, abs=0.02
    )


def test_too_few_or_equal_values_have_no_correlation():
    assert spearman([1, 2], [2, 1]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([], []) is None
    assert spearman([1, 2, 3, 4], [0.1 + 0.2, 0.3, 0.3, 0.3]) is not None


def prediction_of(folder, *, text=None, recall=None):
    directory = gap_study(folder / "text", **(text or {}))
    recall = read_summary(companion_study(directory, **(recall or {})).parent / "recall")
    return predict(text_gap(read_summary(directory)), recall)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return prediction_of(tmp_path_factory.mktemp("prediction"))


def test_recall_and_gap_of_every_mixer(found):
    points = {point.mixer: point for point in found.points}
    assert list(points) == [mixer for mixer in GAPS if mixer != "gated_linear_attention"]
    assert found.left_out == ["gated_linear_attention"]
    hyena = points["hyena"]
    chosen = [entry.quality for entry in found.recall.choices if entry.candidate == "hyena"]
    assert [hyena.recall] == chosen  # mean over both settings, spread over the seeds
    assert hyena.recall.count == 2
    assert hyena.gap("ar_hits").mean == pytest.approx(1.61 - 0.77)
    assert points["attention"].gap("overall").mean == pytest.approx(0)
    expected = stats.spearmanr(
        [point.recall.mean for point in found.points], [point.gap("overall").mean for point in found.points]
    )
    assert found.whole.rho == pytest.approx(expected.statistic)
    assert found.whole.count == 9
    assert [(point.mixer, one, two) for point, one, two in found.outliers] == [("mamba2", 8, 4)]


def test_recall_is_read_at_the_width_of_the_text_if_there_is_one(tmp_path):
    mixers = ("attention", "hyena", "h3")
    same = prediction_of(tmp_path / "a", text={"mixers": mixers}, recall={"widths": (64, 128)})
    assert {point.recall_width for point in same.points} == {128}
    best = prediction_of(tmp_path / "b", text={"mixers": mixers}, recall={"widths": (32, 256)})
    assert {point.recall_width for point in best.points} == {256}  # narrow ones recall less


def test_what_is_said(found):
    text = " ".join(prediction_sentences(found))
    assert (
        "With 9 mixers, the rank correlation between accuracy on recall and the gap on text is −0.77" in text
    )
    assert "(exact permutation test: p = 0.021), and −0.77 (p = 0.021) with the gap on AR hits." in text
    assert "Among these, mixers that recall better are closer to attention on text." in text
    assert "Out of line most is mamba2 (8th by recall, 4th on text)." in text


def test_few_mixers_prove_nothing(tmp_path):
    four = ("attention", "hyena", "h3", "long_conv")
    text = " ".join(prediction_sentences(prediction_of(tmp_path / "a", text={"mixers": four})))
    assert "With 4 mixers, the rank correlation" in text
    assert "these mixers do not show that recall predicts the gap, and no order of so few could." in text
    two = prediction_of(tmp_path / "b", text={"mixers": ("attention", "hyena")})
    assert prediction_sentences(two) == [
        "With 2 mixers measured in both studies, nothing can be said of a correlation."
    ]
    none = prediction_of(tmp_path / "c", text={"mixers": ("hyena", "h3")})
    assert "no gap to predict" in prediction_sentences(none)[0]
    assert none.points == []


def test_the_opposite_is_said_too(found):
    turned = [
        replace(point, recall=replace(point.recall, mean=1 - point.recall.mean)) for point in found.points
    ]
    assert "against the claim" in " ".join(prediction_sentences(replace(found, points=turned)))


def test_the_answer_of_a_study_has_it_in_short(found):
    findings = answer(replace(found.gap.summary, companion=found.recall)).findings
    assert findings[-1] == "Among these, mixers that recall better are closer to attention on text."
    alone = answer(replace(found.gap.summary, companion=None)).findings
    assert not any("rank correlation" in sentence for sentence in alone)


def test_without_slices_only_the_whole_gap_is_compared(tmp_path):
    found = prediction_of(tmp_path, text={"slices": False})
    assert found.whole.count == 9
    assert found.on_hits is None
    assert "AR hits" not in " ".join(prediction_sentences(found))
