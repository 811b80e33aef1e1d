from __future__ import annotations

import dataclasses

import pytest

from gatework.study.spec import StudySpec
from gatework.study.summary import Spread, summarise
from gatework.tasks.language import LANGUAGE
from tests.study.synthetic_studies import ACCURACY, BITS, result_of, run_spec


def summary_of(*runs, quality=ACCURACY):
    """Each run is ``(mixer, width, rate, seed, quality or status)``, or the same with a setting before it."""
    specs, results = [], {}
    for entry in runs:
        setting, mixer, width, rate, seed, outcome = entry if len(entry) == 6 else ("easy", *entry)
        spec = run_spec("recall", setting, mixer, width, rate, seed)
        specs.append(spec)
        if outcome == "missing":
            continue
        status = outcome if isinstance(outcome, str) else "finished"
        result = result_of(spec, 0.5, status=status)
        if status == "finished":
            result["metrics"] |= {"quality": outcome, "validation_quality": outcome}
        results[spec.run_id] = result
    study = StudySpec("s", "recall", "gatework compare recall", "title", quality, LANGUAGE, specs)
    return summarise(study, results)


def test_spread_leaves_out_what_is_unknown():
    assert Spread.of([1.0, None, 4.0]) == Spread(2.5, 1.0, 4.0, 2, 4.5**0.5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1, None)
    assert Spread.of([None]) is None


def test_seeds_are_averaged():
    (cell,) = summary_of(("a", 8, 0.1, 0, 0.5), ("a", 8, 0.1, 1, 0.75)).cells
    assert cell.quality == Spread(0.625, 0.5, 0.75, 2, 0.03125**0.5)
    assert cell.num_rates == 1


@pytest.mark.parametrize(("quality", "expected"), [(ACCURACY, 0.2), (BITS, 0.1)])
def test_the_learning_rate_is_chosen_by_mean_in_the_right_direction(quality, expected):
    runs = [("a", 8, 0.1, 0, 0.9), ("a", 8, 0.1, 1, 0.1), ("a", 8, 0.2, 0, 0.6), ("a", 8, 0.2, 1, 0.6)]
    summary = summary_of(*runs, quality=quality)
    assert [cell.learning_rate for cell in summary.cells] == [expected]
    assert summary.has_rate_choice


def test_what_is_chosen_on_validation_data_is_reported_on_test_data():
    summary = summary_of(("a", 8, 0.1, 0, 0.9), ("a", 8, 0.2, 0, 0.6))
    results = {run.spec.run_id: dict(run.result) for run in summary.runs}
    for run, validation in zip(summary.runs, (0.5, 0.7), strict=True):
        metrics = {**run.result["metrics"], "validation_quality": validation}
        results[run.spec.run_id]["metrics"] = metrics
    (cell,) = summarise(summary.study, results).cells
    assert (cell.learning_rate, cell.validation.mean, cell.quality.mean) == (0.2, 0.7, 0.6)


def test_without_validation_data_nothing_is_chosen_on_test_data():
    summary = summary_of(("a", 8, 0.1, 0, 0.3), ("a", 8, 0.2, 0, 0.9), ("a", 8, 0.3, 0, 0.5))
    results = {run.spec.run_id: dict(run.result) for run in summary.runs}
    for run in summary.runs:
        results[run.spec.run_id]["metrics"] = {**run.result["metrics"], "validation_quality": None}
    (cell,) = summarise(summary.study, results).cells
    assert (cell.learning_rate, cell.validation) == (0.1, None)  # the first of them, not the best
    results[summary.runs[2].spec.run_id]["metrics"]["validation_quality"] = 0.1
    assert summarise(summary.study, results).cells[0].learning_rate == 0.3  # the only one that is known


def test_a_learning_rate_that_diverged_is_passed_over():
    runs = [("a", 8, 0.1, 0, 0.9), ("a", 8, 0.1, 1, "diverged"), ("a", 8, 0.2, 0, 0.6), ("a", 8, 0.2, 1, 0.6)]
    (cell,) = summary_of(*runs).cells
    assert (cell.learning_rate, cell.num_rates, cell.num_unstable_rates) == (0.2, 2, 1)
    (cell,) = summary_of(*runs[:2], ("a", 8, 0.2, 0, "diverged")).cells
    assert (cell.learning_rate, cell.count("diverged")) == (0.1, 1)


def test_only_finished_runs_have_a_quality():
    summary = summary_of(
        ("a", 8, 0.1, 0, "diverged"), ("a", 8, 0.1, 1, "failed"), ("a", 8, 0.1, 2, "missing")
    )
    (cell,) = summary.cells
    assert cell.quality is None
    assert [summary.count(status) for status in ("finished", "diverged", "failed", "missing")] == [0, 1, 1, 1]
    assert summary.choices == []


def test_a_diverged_run_that_stored_a_number_is_not_averaged():
    summary = summary_of(("a", 8, 0.1, 0, 0.5), ("a", 8, 0.1, 1, "diverged"))
    diverged = summary.runs[1]
    numbers = {"quality": 0.9, "loss": 1.0, "validation_quality": 0.9, "validation_loss": 1.0, "slices": {}}
    changed = {**diverged.result, "metrics": numbers}
    again = summarise(
        summary.study,
        {summary.runs[0].spec.run_id: summary.runs[0].result, diverged.spec.run_id: changed},
    )
    assert again.cells[0].quality == Spread(0.5, 0.5, 0.5, 1)
    assert again.cells[0].validation == Spread(0.5, 0.5, 0.5, 1)


def test_a_choice_has_every_setting():
    summary = summary_of(
        ("easy", "a", 8, 0.1, 0, 0.9),
        ("hard", "a", 8, 0.1, 0, 0.5),
        ("easy", "b", 8, 0.1, 0, 1.0),
        ("hard", "b", 8, 0.1, 0, "missing"),
        ("easy", "c", 8, 0.1, 0, 1.0),
        ("hard", "c", 8, 0.1, 0, "diverged"),
    )
    assert [(entry.candidate, entry.quality.mean) for entry in summary.choices] == [("a", 0.7)]
    assert summary.unstable == [("c", 8)]


def test_what_was_never_given_a_setting_is_no_choice():
    summary = summary_of(
        ("easy", "a", 8, 0.1, 0, 0.9), ("hard", "a", 8, 0.1, 0, 0.5), ("easy", "b", 8, 0.1, 0, 1)
    )
    assert [entry.candidate for entry in summary.choices] == ["a"]


def test_the_spread_of_a_choice_is_that_of_seeds_averaged_over_settings():
    summary = summary_of(
        ("easy", "a", 8, 0.1, 0, 0.8),
        ("easy", "a", 8, 0.1, 1, 0.6),
        ("hard", "a", 8, 0.1, 0, 0.2),
        ("hard", "a", 8, 0.1, 1, 0.4),
    )
    # each seed averages to 0.5: the spread within a setting says nothing about the choice
    assert summary.choices[0].quality == Spread(0.5, 0.5, 0.5, 2, 0.0)


@pytest.mark.parametrize(("quality", "order"), [(ACCURACY, ["b", "a"]), (BITS, ["a", "b"])])
def test_choices_come_best_first(quality, order):
    summary = summary_of(("a", 8, 0.1, 0, 0.4), ("b", 8, 0.1, 0, 0.6), quality=quality)
    assert [entry.candidate for entry in summary.choices] == order


def test_costs_that_were_not_measured_everywhere_are_unknown():
    summary = summary_of(("easy", "a", 8, 0.1, 0, 0.9), ("hard", "a", 8, 0.1, 0, 0.5))
    assert summary.choices[0].costs["state_bytes"] == 100 * 8
    flops = [run.cost("training_flops") for run in summary.runs]
    assert summary.choices[0].costs["training_flops"] == max(flops) > 0
    results = {run.spec.run_id: dict(run.result) for run in summary.runs}
    results[summary.runs[0].spec.run_id]["cost"] = None
    again = summarise(summary.study, results)
    assert again.choices[0].costs["state_bytes"] is None
    assert again.choices[0].rate is None
    assert again.choices[0].costs["training_flops"] is None


def test_results_of_another_grid_are_counted_and_left_out():
    summary = summary_of(("a", 8, 0.1, 0, 0.9), ("a", 8, 0.1, 1, 0.8))
    smaller = dataclasses.replace(summary.study, runs=list(summary.study.runs)[:1])
    again = summarise(smaller, {run.spec.run_id: run.result for run in summary.runs})
    assert (len(again.runs), again.num_foreign) == (1, 1)
