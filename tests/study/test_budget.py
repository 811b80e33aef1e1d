"""What is held equal becomes steps, the same ones every time."""

from __future__ import annotations

import json

import pytest

from gatework.files import FileError
from gatework.study import expand_grid
from gatework.study.budget import CALIBRATION_FILE, apply_budget

SHORT = {"input_seq_len": 16, "num_kv_pairs": 2, "vocab_size": 64, "num_train": 64, "num_test": 8}


def grid(widths=(8,), lengths=(16,), **training):
    return expand_grid(
        "recall",
        candidates={"attention": [{"name": "attention"}], "hyena": [{"name": "hyena"}]},
        settings={f"N={length}": SHORT | {"input_seq_len": length} for length in lengths},
        sizes=list(widths),
        learning_rates=[0.01, 0.1],
        seeds=[0, 1],
        training={"steps": 40, "batch_size": 8} | training,
    )


def steps_of(runs):
    return {(run.candidate, run.setting_name, run.size): run.training["steps"] for run in runs}


def plan(runs, kind, amount, directory):
    return apply_budget(runs, kind, amount, directory=directory, num_threads=1)


def test_steps_are_what_training_says_or_the_amount(tmp_path):
    runs = grid()
    assert plan(runs, "steps", None, tmp_path) == (runs, "40 training steps for every mixer")
    planned, _ = plan(runs, "steps", 7, tmp_path)
    assert {run.training["steps"] for run in planned} == {7}


def test_tokens_give_short_sequences_more_steps(tmp_path):
    planned, sentence = plan(grid(lengths=(16, 32)), "tokens", None, tmp_path)
    assert {steps for (_, name, _), steps in steps_of(planned).items() if name == "N=16"} == {40}
    assert {steps for (_, name, _), steps in steps_of(planned).items() if name == "N=32"} == {20}
    assert sentence == "5.12k training tokens for every mixer: between 20 and 40 steps"


@pytest.mark.parametrize("steps", [3, 7, 29, 1500])
def test_the_reference_keeps_its_steps_whatever_one_costs(tmp_path, monkeypatch, steps):
    runs = grid(steps=steps, evaluations=1)
    for price in (0.1, 1 / 3, 0.7, 1e9 / 7):
        monkeypatch.setattr("gatework.study.budget._step_flops", lambda run, price=price: price)
        planned, _ = plan(runs, "flops", None, tmp_path)
        assert {run.training["steps"] for run in planned} == {steps}


def test_flops_are_equal_at_each_width_within_a_step(tmp_path):
    from gatework.study.flops import step_cost
    from gatework.study.plan import model_options
    from gatework.tasks import create_task
    from gatework.tasks.task import Training

    planned, sentence = plan(grid(widths=(8, 16)), "flops", None, tmp_path)
    assert "that attention needs for its steps" in sentence
    spent, price = {}, {}
    for run in planned:
        task = create_task(run.task, run.setting)
        batch = next(iter(task.train_batches(8, steps=1, seed=0)))
        key = (run.candidate, run.size)
        module = task.module(task.build_model(model_options(task, run)), Training(), 0.1)
        price[key] = step_cost(module, batch).flops
        spent[key] = price[key] * run.training["steps"]
    for width in (8, 16):
        assert steps_of(planned)["attention", "N=16", width] == 40
        assert 0 <= spent["attention", width] - spent["hyena", width] < price["hyena", width]


def test_seconds_are_measured_once_and_kept(tmp_path):
    planned, sentence = plan(grid(evaluations=4), "seconds", 0.5, tmp_path)
    assert "500 ms of training steps" in sentence
    measured = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    assert len(measured) == 2  # one per mixer: seeds and rates do not change the speed
    assert steps_of(planned).keys() == {("attention", "N=16", 8), ("hyena", "N=16", 8)}
    for run in planned:
        assert run.training["steps"] in {int(0.5 / seconds) for seconds in measured.values()}
        assert run.training["evaluations"] <= run.training["steps"]
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(dict.fromkeys(measured, 0.05)))
    again, _ = plan(grid(evaluations=4), "seconds", 0.5, tmp_path)
    assert {run.training["steps"] for run in again} == {10}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "amount", "message"),
    [
        ("token", None, "did you mean 'tokens'"),
        ("tokens", 0, "budget_amount must be positive, got 0"),
        ("flops", float("nan"), "budget_amount must be positive, got nan"),
        ("flops", 10, "pays for no training step of attention at width 8"),
        ("tokens", "many", "budget_amount must be a number, got 'many'"),
    ],
)
def test_impossible_budgets_are_refused(tmp_path, kind, amount, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan(grid(), kind, amount, tmp_path)


@pytest.mark.bad_input
def test_a_broken_calibration_is_named(tmp_path):
    (tmp_path / CALIBRATION_FILE).write_text("{")
    with pytest.raises(FileError, match=r"calibration\.json is not valid JSON"):
        plan(grid(), "seconds", 1.0, tmp_path)
