from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.files import FileError
from gatework.study.comparison import Pair, compare_studies, spec_changes
from gatework.study.comparison_page import comparison_data, render_comparison, write_comparison
from gatework.study.report import read_summary
from gatework.study.spec import StudySpec
from gatework.study.summary import Cell, Run, summarise
from gatework.tasks.declaration import Axis
from gatework.tasks.language import LANGUAGE
from gatework.tasks.task import Quality
from tests.study.synthetic_images import IMAGES
from tests.study.synthetic_studies import (
    ACCURACY,
    BITS,
    TRAINING,
    recall_study,
    result_of,
    run_spec,
    text_study,
    write_study,
)


def summary_of(
    outcomes,
    *,
    quality=ACCURACY,
    name="s",
    task="recall",
    training=None,
    setting="easy",
    declaration=LANGUAGE,
):
    """``{(mixer, width): qualities or status by seed}``."""
    specs, results = [], {}
    for (mixer, width), seeds in outcomes.items():
        for seed, outcome in enumerate(seeds):
            spec = run_spec(task, setting, mixer, width, 0.1, seed, training=training)
            specs.append(spec)
            status = outcome if isinstance(outcome, str) else "finished"
            if status != "missing":
                result = result_of(spec, 0.5, status=status)
                if status == "finished":
                    result["metrics"] |= {"quality": outcome, "validation_quality": outcome}
                results[spec.run_id] = result
    return summarise(StudySpec(name, task, f"gatework {name}", name, quality, declaration, specs), results)


def compare(study, baseline, **options):
    return compare_studies(summary_of(study, **options), summary_of(baseline, **options))


def test_cells_are_common_or_of_one_study():
    found = compare({("a", 8): [0.5], ("b", 8): [0.5]}, {("b", 8): [0.4], ("b", 16): [0.4]})
    assert [(pair.study.candidate, pair.study.size) for pair in found.pairs] == [("b", 8)]
    assert [(cell.candidate, cell.size) for cell in found.only_study] == [("a", 8)]
    assert [(cell.candidate, cell.size) for cell in found.only_baseline] == [("b", 16)]
    assert found.candidates == ["b"]


@pytest.mark.parametrize(
    ("study", "baseline", "verdict", "other_way"),
    [
        ([0.8, 0.7], [0.6, 0.5], "better", "worse"),
        ([0.5, 0.6], [0.7, 0.8], "worse", "better"),
        ([0.8, 0.6], [0.6, 0.5], "overlap", "overlap"),  # touching is overlapping
        ([0.8], [0.6, 0.5], "one seed", "one seed"),
        ([0.8, "diverged"], [0.6, 0.5], "unknown", "unknown"),
        ([0.8, 0.7, "diverged"], [0.6, 0.5], "unknown", "unknown"),
        (["failed", "missing"], [0.6, 0.5], "unknown", "unknown"),
    ],
)
def test_the_verdict_is_that_of_the_seeds(study, baseline, verdict, other_way):
    (pair,) = compare({("a", 8): study}, {("a", 8): baseline}).pairs
    assert pair.verdict == verdict
    (pair,) = compare({("a", 8): study}, {("a", 8): baseline}, quality=BITS).pairs
    assert pair.verdict == other_way


def test_the_difference_has_the_range_of_all_pairs_of_seeds():
    (pair,) = compare({("a", 8): [0.75, 0.5]}, {("a", 8): [0.25, 0.5, 0.0]}).pairs
    difference = pair.difference
    assert (difference.mean, difference.low, difference.high, difference.count) == (0.375, 0.0, 0.75, 2)
    # standard error of a difference of means: sqrt(s1^2 / n1 + s2^2 / n2)
    assert difference.std == pytest.approx((0.03125 / 2 + 0.0625 / 3) ** 0.5)


qualities = st.lists(st.floats(0, 1), min_size=2, max_size=4)


@settings(max_examples=100, deadline=None)
@given(qualities, qualities)
def test_the_range_holds_every_pair_of_seeds_and_zero_if_they_overlap(one, two):
    def cell(values):
        runs = []
        for seed, value in enumerate(values):
            spec = run_spec("recall", "easy", "a", 8, 0.1, seed)
            runs.append(Run(spec, {"status": "finished", "metrics": {"quality": value}}))
        return Cell("a", "easy", 8, runs, 1, 0)

    difference = Pair(cell(one), cell(two), 1).difference
    assert all(difference.low <= a - b <= difference.high for a in one for b in two)
    assert (difference.low <= 0 <= difference.high) == (max(one) >= min(two) and max(two) >= min(one))


def test_costs_are_ratios_and_unknown_ones_none():
    found = compare({("a", 8): [0.5], ("b", 8): ["failed"]}, {("a", 8): [0.5], ("b", 8): [0.5]})
    first, second = found.pairs
    assert first.ratio("state_bytes") == 1.0
    assert second.ratio("state_bytes") is None
    assert found.median_ratio("state_bytes") == 1.0
    assert found.median_ratio("no_such_cost") is None


def test_what_differs_in_the_specifications_is_found():
    study = summary_of({("a", 8): [0.5, 0.5]}, training={**TRAINING, "steps": 50, "warmup": 0.1})
    baseline = summary_of({("a", 8): [0.5]})
    found = compare_studies(study, baseline)
    assert list(spec_changes(found.pairs[0], LANGUAGE)) == [
        ("training.steps", "50", "600"),
        ("training.warmup", "0.1", "absent"),
        ("seeds", "0, 1", "0"),
    ]
    assert [(change.name, change.count) for change in found.changes] == [
        ("seeds", 1),
        ("training.steps", 1),
        ("training.warmup", 1),
    ]
    assert not compare({("a", 8): [0.5]}, {("a", 8): [0.4]}).changes


def test_definitions_that_are_no_lists_are_compared_by_their_options():
    def summary(definition):
        run = run_spec("recall", "easy", "a", 8, 0.1, 0)
        runs = [replace(run, task="photographs", definition=definition)]
        return summarise(StudySpec("s", "photographs", "c", "t", ACCURACY, IMAGES, runs), {})

    found = compare_studies(
        summary({"name": "vit", "depth": 2, "mlp": {"ratio": 4}}),
        summary({"name": "vit", "mlp": {"ratio": 3}}),
    )
    assert [(change.name, change.study, change.baseline) for change in found.changes] == [
        ("definition.depth", "2", "absent"),
        ("definition.mlp.ratio", "4", "3"),
    ]
    assert list(found.costs) == ["parameters", "activation_bytes", "training_flops", "images_per_second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "text"},
            "only studies of one task can be compared, got 's' on 'recall' against 's' on 'text'",
        ),
        ({"quality": Quality("F1", "higher")}, "its name is 'accuracy' in 's' and 'F1' in 's'"),
        ({"quality": Quality("accuracy", "lower")}, "its better is 'higher' in 's' and 'lower' in 's'"),
        ({"quality": Quality("accuracy", "higher", unit="%")}, "its unit is '' in 's' and '%' in 's'"),
        (
            {"declaration": replace(LANGUAGE, sizes=Axis("depth"))},
            "of one declaration of task 'recall' can be compared: its sizes are 'width' in one and 'depth'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(FileError) as error:
        compare_studies(summary_of({("a", 8): [0.5]}), summary_of({("a", 8): [0.5]}, **options))
    assert message in str(error.value)


def test_the_page_says_it_in_words(tmp_path):
    study = recall_study(tmp_path / "new", settings=1)
    baseline = recall_study(tmp_path / "old", settings=1, boost=0.8, steps=300, mixers=("attention", "hyena"))
    path = write_comparison(study, baseline)
    assert path == study / "comparison.html"
    page = path.read_text()
    assert "Of the 4 cells that both studies have, A is better in 1 and worse in 0." in page
    assert "In 2 the seeds overlap, so that nothing can be told apart." in page
    assert "In 1 a result is missing or a seed diverged." in page
    assert "The largest gain is +0.16" in page
    assert "2.0× training compute" in page
    assert "Only in A: base_conv+attention, width 32, N=64, 4 pairs;" in page
    assert "B has no cell that the other lacks." in page
    assert '<th scope="row">training.steps</th><td>600</td><td>300</td><td>all cells</td>' in page
    assert "<dt>A</dt><dd>new, 2026-01-05: 30 of 32 runs finished, 2 seeds" in page
    assert "held equal: 300 steps of 64 sequences for every mixer" in page
    assert page == write_comparison(study, baseline).read_text()


def test_lower_can_be_better(tmp_path):
    runs = [run_spec("text", "python source", "mamba2", 128, 0.002, seed) for seed in (0, 1)]
    results = [result_of(run, 2.0 + 0.01 * run.seed) for run in runs]
    study = write_study(tmp_path / "new", runs, results, quality=BITS, title="t")
    page = write_comparison(study, text_study(tmp_path / "text"), tmp_path / "page.html").read_text()
    assert "A is better in 1 and worse in 0." in page
    assert "The largest gain is −0.4" in page
    assert "To the left of it, A is better." in page
    assert not (study / "comparison.html").exists()


@pytest.mark.parametrize(
    "outcomes", [{("a", 8): ["missing"]}, {("a", 8): ["failed", "diverged"]}, {("c", 9): [1.0]}]
)
def test_studies_without_numbers_have_a_page(outcomes):
    for one, two in ((outcomes, {("a", 8): [0.5]}), (outcomes, outcomes), ({("a", 8): [0.5]}, outcomes)):
        found = compare(one, two)
        page = render_comparison(found)
        json.dumps(comparison_data(found), allow_nan=False)
        assert "Every common cell" in page
        if not found.pairs:
            assert "no mixer, setting and width in common" in page


def test_a_broken_result_is_named_and_no_page_is_written(tmp_path):
    study, baseline = text_study(tmp_path / "new"), text_study(tmp_path / "old")
    broken = next((baseline / "results").iterdir())
    broken.write_text(broken.read_text().replace('"quality": 2', '"quality": NaN, "x": 2', 1))
    with pytest.raises(FileError, match=broken.name):
        write_comparison(study, baseline)
    with pytest.raises(FileError, match=r"study\.json"):
        write_comparison(study, tmp_path)
    assert not list(tmp_path.rglob("comparison.html"))


def test_names_from_files_stay_text(tmp_path):
    name = "<script>window.hacked = 1</script>&\"'$title${x}"
    runs = [run_spec("recall", name, name, width, 0.1, 0) for width in (8, 16)]
    directories = [
        write_study(tmp_path / label, runs[: 1 + index], [result_of(run, 0.5) for run in runs], title=name)
        for index, label in enumerate("ab")
    ]
    page = write_comparison(*directories).read_text()
    assert "<script>window" not in page
    assert name not in page


def test_a_study_against_itself_has_changed_nothing(tmp_path):
    summary = read_summary(text_study(tmp_path / "text"))
    found = compare_studies(summary, summary)
    assert found.count("overlap") == len(found.pairs) == 4
    assert all(pair.difference.mean == 0 for pair in found.pairs)
    assert "The specifications are the same." in render_comparison(found)
