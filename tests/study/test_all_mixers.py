"""``compare recall --mixers all``: every registered mixer through a whole run, from spec to result."""

from __future__ import annotations

import pytest

from gatework.cli import main
from gatework.registry import list_mixers, mixer_options
from gatework.study.plan import plan_runs
from gatework.study.results import check_result
from gatework.study.run import execute
from gatework.study.spec import StudySpec
from gatework.tasks.language import SMALL_OPTIONS, parse_mixers

GRID = {
    "settings": {
        "tiny": {"input_seq_len": 32, "num_kv_pairs": 2, "vocab_size": 40, "num_train": 16, "num_test": 8}
    },
    "sizes": [16],
    "learning_rates": [0.01],
    "seeds": [0],
    "training": {"steps": 2, "batch_size": 8, "evaluations": 1},
    "model": {"channel_mixer": "none"},
    "measure": {"decode_contexts": [32]},
}


def test_all_names_every_mixer_once_with_options_that_it_has():
    choices = parse_mixers("all")
    assert [choice.label for choice in choices] == list_mixers()
    assert all(choice.definition == [{"name": choice.label, **choice.definition[0]}] for choice in choices)
    for name, options in SMALL_OPTIONS.items():
        assert set(options) <= mixer_options(name)


def test_one_command_plans_all_of_them(tmp_path, capsys):
    words = ["--mixers=all", "--widths=[16,64]", "--seeds=[0]", "--executor=print"]
    assert main(["compare", "recall", *words, f"--output={tmp_path / 'study'}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(list_mixers())
    study = StudySpec.read(tmp_path / "study")
    assert list(dict.fromkeys(run.candidate for run in study.runs)) == list_mixers()
    assert list(study.runs[0].measure["decode_contexts"]) == [64, 256, 1024, 4096]


@pytest.mark.parametrize("name", list_mixers())
def test_every_mixer_trains_and_generates_in_a_study(name):
    (choice,) = [choice for choice in parse_mixers("all") if choice.label == name]
    (run,) = plan_runs("recall", candidates=[choice], **GRID)
    result = execute(run.to_json())
    check_result(result)
    assert result["status"] == "finished"
    assert 0 <= result["metrics"]["quality"] <= 1
    (row,) = result["scaling"]["decoding"]["measured"]
    assert row["tokens_per_second"] > 0
    assert row["state_bytes"] == result["cost"]["state_bytes"]  # the context is the task's length


@pytest.mark.bad_input
def test_another_word_is_no_list_of_mixers():
    with pytest.raises(TypeError, match="a list of names, a mapping of labels or 'all', got 'every'"):
        parse_mixers("every")
