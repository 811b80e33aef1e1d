"""The rule of what was still improving when its budget ended, and what is said of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.study.answer import answer
from gatework.study.improving import describe_rule, is_improving, late_gain
from gatework.study.page_data import describe_cell
from gatework.study.report import read_summary, render_page
from gatework.study.summary import Run, summarise
from gatework.tasks.task import Quality
from tests.study.synthetic_studies import ACCURACY, BITS, MIXERS, recall_study, run_spec

SCORE = Quality("score", "higher")


def curve(*points):
    """A learning curve of ``(step, quality)``."""
    return [{"step": step, "quality": quality} for step, quality in points]


def run(points, status="finished"):
    return Run(run_spec("recall", "easy", "a", 8, 0.1, 0), {"status": status, "curve": points})


@pytest.mark.parametrize(
    ("quality", "points", "gain"),
    [
        (ACCURACY, [(100, 0.5), (300, 0.70), (400, 0.75)], 0.05),  # of a range of 1
        (ACCURACY, [(100, 0.5), (300, 0.70), (400, 0.65)], -0.05),
        (Quality("F1", "higher", range=(0.0, 100.0)), [(300, 70.0), (400, 75.0)], 0.05),
        (SCORE, [(300, 40.0), (400, 50.0)], 0.2),  # of the final value
        (SCORE, [(300, -60.0), (400, -50.0)], 0.2),
        (BITS, [(300, 2.5), (400, 2.0)], 0.25),
        (BITS, [(300, 2.0), (400, 2.5)], -0.2),
        (Quality("error", "lower", range=(0.0, 1.0)), [(300, 0.5), (400, 0.4)], 0.1),
        (ACCURACY, [(200, 0.2), (400, 0.6)], 0.2),  # in the middle between both points
        (ACCURACY, [(100, 0.0), (200, 0.2), (400, 0.6)], 0.2),
        (ACCURACY, [(400, 0.6), (200, 0.2)], 0.2),  # in any order
        (ACCURACY, [(1, 0.5), (3, 0.70), (4, 0.75)], 0.05),
    ],
)
def test_the_gain_is_that_of_the_last_quarter(quality, points, gain):
    assert late_gain([curve(*points)], quality) == pytest.approx(gain)
    assert is_improving([run(curve(*points))], quality) == (gain > 0.02)


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(100, 0.5)],  # one evaluation, at the end
        [(90, 0.2), (100, 0.5)],  # nothing at three quarters or before
        [(50, None), (100, 0.5)],
        [(50, 0.1), (100, None)],
        [(50, math.nan), (100, 0.5)],
        [(None, 0.1), (100, 0.5)],
    ],
)
def test_what_does_not_reach_back_far_enough_says_nothing(points):
    assert late_gain([curve(*points)], ACCURACY) is None
    assert not is_improving([run(curve(*points))], ACCURACY)


def test_what_is_not_known_is_left_out():
    known = curve((50, 0.2), (75, 0.4), (100, 0.5))
    gaps = curve((25, None), (50, 0.2), (60, math.inf), (75, 0.4), (80, None), (100, 0.5))
    assert late_gain([gaps, [], curve((100, 0.9))], ACCURACY) == late_gain([known], ACCURACY)
    assert late_gain([curve((50, 0.2), (75, 0.4), (100, 0.5), (120, None))], ACCURACY) == pytest.approx(0.1)


def test_seeds_are_averaged_each_at_its_own_last_step():
    long = curve((500, 0.4), (750, 0.5), (1000, 0.6))
    short = curve((50, 0.4), (75, 0.5), (100, 0.4))
    assert late_gain([long], ACCURACY) == pytest.approx(0.1)
    assert late_gain([short], ACCURACY) == pytest.approx(-0.1)
    assert late_gain([long, short], ACCURACY) == pytest.approx(0.0)
    assert late_gain([long, long, short], ACCURACY) == pytest.approx(0.1 / 3)


def test_exactly_two_percent_are_not_more():
    assert not is_improving([run(curve((75, 0.48), (100, 0.50)))], ACCURACY)
    assert not is_improving([run(curve((75, 2.04), (100, 2.0)))], BITS)
    assert is_improving([run(curve((75, 0.48), (100, 0.5001)))], ACCURACY)


def test_a_final_value_of_zero_divides_nothing():
    assert late_gain([curve((75, 1.0), (100, 0.0))], BITS) == math.inf
    assert late_gain([curve((75, 0.0), (100, 0.0))], BITS) == 0.0
    assert late_gain([curve((75, 1.0), (100, 0.0))], SCORE) == 0.0


def test_only_finished_seeds_count():
    rising, flat = curve((75, 0.1), (100, 0.9)), curve((75, 0.5), (100, 0.5))
    assert is_improving([run(rising), run(flat, "diverged")], ACCURACY)
    assert not is_improving([run(flat), run(rising, "diverged"), run(rising, "failed")], ACCURACY)
    assert not is_improving([Run(run_spec("recall", "easy", "a", 8, 0.1, 0), None)], ACCURACY)
    assert not is_improving([run(None)], ACCURACY)


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=200, deadline=None)
@given(
    curves=st.lists(st.lists(st.tuples(st.integers(0, 20), numbers), max_size=6), max_size=3),
    quality=st.sampled_from([ACCURACY, BITS, SCORE]),
)
def test_any_curve_has_an_answer(curves, quality):
    gain = late_gain([curve(*points) for points in curves], quality)
    assert gain is None or not math.isnan(gain)


def test_the_rule_is_said_in_words():
    assert describe_rule(ACCURACY) == (
        "the mean validation accuracy over its finished seeds improved by more than 2% of its range over the "
        "last quarter of its steps"
    )
    assert "2% of its final value" in describe_rule(BITS)


def study_of(tmp_path, slow, **options):
    mixers = options.pop("mixers", ("attention", "based", "base_conv"))
    return read_summary(recall_study(tmp_path / "s", slow=slow, mixers=mixers, **options))


def improving_sentences(summary):
    return [text for text in answer(summary).sentences if "till improving" in text]


@pytest.mark.parametrize(
    ("slow", "options", "sentence"),
    [
        ((), {}, None),
        (
            ("based",),
            {"widths": (64,)},
            "Still improving when its budget ended: based at width 64; with more training it may rank "
            "higher.",
        ),
        (
            ("based", "base_conv"),
            {},
            "Still improving when their budget ended: based at widths 64 and 32 and base_conv at widths 64 "
            "and 32; with more training they may rank higher.",
        ),
        (
            ("attention",),
            {"widths": (64,)},
            "attention at width 64 was still improving when its budget ended; with more training it may get "
            "better.",
        ),
        (
            ("attention", "based", "base_conv"),
            {},
            "Everything that is ranked here was still improving when its budget ended; with more training "
            "the order may change.",
        ),
        (
            ("attention",),
            {"mixers": ("attention",), "widths": (64,)},
            "It was still improving when its budget ended; with more training it may get better.",
        ),
        (
            ("based",),
            {"widths": (64,), "settings": 2},
            "Still improving in at least one setting when its budget ended: based at width 64; with more "
            "training it may rank higher.",
        ),
    ],
)
def test_the_answer_says_who_was(tmp_path, slow, options, sentence):
    summary = study_of(tmp_path, slow, **{"settings": 1, **options})
    assert improving_sentences(summary) == ([sentence] if sentence else [])


def test_what_is_left_out_of_the_ranking_is_not_said_to_rank_higher(tmp_path):
    summary = study_of(tmp_path, ("hyena",), mixers=("attention", "hyena"), settings=1)
    (sentence,) = improving_sentences(summary)
    assert "hyena at width 32;" in sentence  # a seed diverged at width 64
    (lost,) = [cell for cell in summary.cells if (cell.candidate, cell.size) == ("hyena", 64)]
    assert "still improving when its budget ended" in describe_cell(summary, lost)


def test_the_page_states_the_rule(tmp_path):
    page = render_page(study_of(tmp_path, ("based",), settings=1))
    assert "<dt>Still improving</dt><dd>the mean validation accuracy" in page
    assert "that ends in an arrow was still improving when its budget ended: the mean validation" in page
    flat = render_page(read_summary(recall_study(tmp_path / "flat", settings=1, mixers=("attention",))))
    assert "<dt>Still improving</dt>" not in flat
    assert "No line was still improving when its budget ended: of none, the mean validation" in flat


def test_synthetic_studies_are_flat_unless_they_are_to_be_slow(tmp_path):
    summary = study_of(tmp_path, ("mamba2",), mixers=tuple(MIXERS), settings=1)
    found = {cell.candidate for cell in summary.cells if is_improving(cell.runs, summary.quality)}
    assert found == {"mamba2"}
    nothing = summarise(summary.study, {})
    assert improving_sentences(nothing) == []
