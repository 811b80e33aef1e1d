from __future__ import annotations

import pytest

from gatework.study.answer import answer
from gatework.study.results import ResultStore
from gatework.study.spec import StudySpec
from gatework.study.summary import summarise
from gatework.tasks.language import LANGUAGE
from tests.study.synthetic_studies import ACCURACY, BITS, recall_study, result_of, run_spec, text_study


def read(directory):
    return summarise(StudySpec.read(directory), ResultStore(directory).read_all())


def study_of(candidates, *, quality=ACCURACY, status=None):
    """One seed each of ``label: (quality, state bytes, tokens/s)``."""
    specs = [run_spec("recall", "easy", label, 8, 0.1, 0) for label in candidates]
    results = {}
    for spec in specs:
        reached, state, rate = candidates[spec.candidate]
        result = result_of(spec, 0.5, status=(status or {}).get(spec.candidate, "finished"))
        if result["status"] == "finished":
            result["metrics"]["quality"] = reached
            result["cost"] |= {"state_bytes": state, "tokens_per_second": rate}
        results[spec.run_id] = result
    return summarise(StudySpec("s", "recall", "command", "title", quality, LANGUAGE, specs), results)


def roles(found):
    return {pick.choice.candidate: list(pick.roles) for pick in found.picks}


def test_every_trade_is_named_with_its_numbers():
    found = answer(
        study_of({"big": (0.9, 4096, 1000), "lean": (0.89, 1024, 1500), "fast": (0.3, 8192, 3000)})
    )
    assert roles(found) == {
        "big": ["Best accuracy"],
        "lean": ["Smallest decoding state within 2%", "Fastest within 2%"],
        "fast": ["Fastest of all"],
    }
    assert "The best accuracy, 0.900 (one seed), comes from big at width 8." in found.text
    assert "lean at width 8: 1 KiB instead of 4 KiB (4.0× smaller), at 0.010 lower accuracy." in found.text
    assert "fast at width 8: 3k tokens/s (3.0× as fast as the best), at 0.600 lower accuracy" in found.text
    assert (
        "within the 2% it is lean at width 8, with 1.5k tokens/s (1.50× as fast as the best)." in found.text
    )
    assert "one seed each" in found.text


def test_lower_can_be_better():
    found = answer(
        study_of({"big": (2.0, 4096, 1000), "lean": (2.03, 1024, 900), "bad": (3.0, 8, 500)}, quality=BITS)
    )
    assert roles(found) == {
        "big": ["Best bits per byte", "Fastest of all"],
        "lean": ["Smallest decoding state within 2%"],
    }
    assert "2.000 (one seed), comes from big" in found.text
    assert "at 0.030 higher bits per byte" in found.text
    assert "also the fastest" in found.text


def test_outside_the_margin_nothing_is_as_good():
    found = answer(study_of({"big": (0.9, 4096, 1000), "lean": (0.88, 1024, 500)}))
    assert roles(found) == {"big": ["Best accuracy", "Smallest decoding state within 2%", "Fastest of all"]}
    assert "Nothing within 2% of that (0.018) has a smaller decoding state than its 4 KiB." in found.text


def test_chance_is_called_chance():
    found = answer(study_of({"a": (1 / 64, 8, 10), "b": (0.01, 8, 10)}))
    assert "no better than chance (0.016)" in found.text
    assert "no better" not in answer(study_of({"a": (0.5, 8, 10), "b": (0.01, 8, 10)})).text


def test_a_mixer_that_diverged_is_left_out_and_named():
    found = answer(
        study_of({"a": (0.5, 8, 10), "b": (0.4, 8, 10), "c": (0.9, 8, 10)}, status={"c": "diverged"})
    )
    assert "Left out, because a seed diverged: c at width 8." in found.text
    assert "comes from a at width 8" in found.text


def test_absent_runs_make_it_preliminary():
    found = answer(
        study_of({"a": (0.5, 8, 10), "b": (0.4, 8, 10), "c": (0.9, 8, 10)}, status={"c": "failed"})
    )
    assert "1 of 3 runs failed or is missing, so this is preliminary." in found.text


@pytest.mark.parametrize(
    ("status", "expected"),
    [("failed", "No run has finished"), ("diverged", "No run has finished"), ("finished", "comes from a")],
)
def test_one_mixer_or_none(status, expected):
    found = answer(study_of({"a": (0.5, 8, 10)}, status={"a": status}))
    assert expected in found.text
    assert len(found.picks) == (status == "finished")


def test_seeds_that_overlap_cannot_be_told_apart(tmp_path):
    text = answer(read(recall_study(tmp_path / "recall"))).text
    assert "cannot be told apart from" in text
    assert "base_conv+attention at width" in text
    assert "averaged over the 2 settings" in text
    assert "hyena at width 64" in text  # left out
    assert "cannot be told apart" not in answer(read(text_study(tmp_path / "text"))).text


def test_no_cost_no_claim():
    summary = study_of({"a": (0.5, 8, 10), "b": (0.4, 8, 10)})
    results = {run.spec.run_id: {**run.result, "cost": None} for run in summary.runs}
    found = answer(summarise(summary.study, results))
    assert roles(found) == {"a": ["Best accuracy"]}
    assert "state" not in found.text
    assert "fast" not in found.text
