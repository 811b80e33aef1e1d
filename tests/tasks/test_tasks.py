"""Tasks: their data belong to the setting, their metrics mean what they say, and training learns."""

from __future__ import annotations

import math

import pytest
import torch

from gatework import tasks
from gatework.data.mqar import MQARConfig, make_mqar
from gatework.data.recall_mixture import RecallMixture
from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.study.run import execute
from gatework.tasks import create_task, list_tasks
from gatework.tasks.next_token import DivergedError, NextTokenModule, rate_factor
from gatework.tasks.recall import VARIANTS, RecallTask
from gatework.tasks.task import Quality, Training

MQAR = {"vocab_size": 40, "input_seq_len": 16, "num_kv_pairs": 3, "random_non_queries": False}
RECALL = {**MQAR, "num_train": 96, "num_test": 20}


def tiny_model(task, **options):
    config = GateworkConfig(
        vocab_size=task.vocab_size, hidden_size=8, context_length=task.length, channel_mixer="none", **options
    )
    return GateworkForCausalLM(config)


def spec(**changes):
    return {
        "task": "recall",
        "setting": RECALL,
        "setting_name": "tiny",
        "mixer": "base_conv",
        "layers": [{"name": "base_conv"}],
        "width": 8,
        "learning_rate": 0.01,
        "seed": 0,
        "training": {"steps": 6, "batch_size": 16, "evaluations": 2},
        "model": {},
        **changes,
    }


def test_tasks_are_listed():
    assert list_tasks() == ["recall", "text"]


def test_examples_are_those_of_the_setting():
    task = create_task("recall", RECALL)
    batches = list(task.train_batches(32, steps=3, seed=5))
    rows = {tuple(row.tolist()) for batch in batches for row in batch.inputs}
    seed = task._mixture(1).segment_seeds[0][0]
    expected = make_mqar(MQARConfig(num_examples=96, **MQAR), seed).inputs
    assert rows == {tuple(row.tolist()) for row in expected}


def test_order_follows_from_the_seed_alone():
    task = create_task("recall", RECALL)
    first = [batch.inputs for batch in task.train_batches(16, steps=6, seed=1)]
    torch.manual_seed(99)
    again = [batch.inputs for batch in task.train_batches(16, steps=6, seed=1)]
    other = [batch.inputs for batch in task.train_batches(16, steps=6, seed=2)]
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_training_and_test_examples_differ():
    task = create_task("recall", RECALL)
    train = {tuple(row.tolist()) for batch in task.train_batches(96, steps=1, seed=0) for row in batch.inputs}
    test = {tuple(row.tolist()) for batch in task.test_batches() for row in batch.inputs}
    assert len(test) == 20
    assert not train & test


def rows(batches):
    return {tuple(row.tolist()) for batch in batches for row in batch.inputs}


def test_validation_examples_are_of_the_tests_kind_and_others():
    task = create_task("recall", RECALL)
    before, test = rows(task.test_batches()), RecallTask.from_setting({**RECALL, "num_validation": 50})
    assert before == rows(test.test_batches())
    assert len(rows(task.validation_batches())) == 20
    assert len(rows(test.validation_batches())) == 50
    assert not rows(task.validation_batches()) & (before | rows(task.train_batches(96, steps=1, seed=0)))
    assert rows(task.validation_batches()) == rows(create_task("recall", RECALL).validation_batches())
    assert "20 examples" in task.describe()[1]
    assert task.describe()[1].startswith("Validation data")


def test_validation_segments_may_be_named():
    segments = [{**MQAR, "num_examples": 10}]
    own = [{**MQAR, "input_seq_len": 32, "num_examples": 7}]
    task = create_task("recall", {"train": segments, "validation": own, "test": segments})
    assert [tuple(batch.inputs.shape) for batch in task.validation_batches()] == [(7, 32)]
    assert task.length == 32


def test_no_seed_serves_two_splits():
    config = MQARConfig(num_examples=1, **MQAR)
    for seed in range(50):
        mixture = RecallMixture([config] * 20, [config] * 20, seed=seed, validation=[config] * 200)
        train, test = mixture.segment_seeds
        assert len(set(train) | set(test) | set(mixture.validation_seeds)) == 240


def test_text_is_validated_on_its_own_split(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"document {number} says {number * number}. " * 20)
    setting = {"corpus": str(tmp_path), "length": 32, "num_test": 5}
    task = create_task("text", setting)
    assert [batch.inputs.shape[0] for batch in task.validation_batches()] == [5]
    every = create_task("text", {**setting, "num_validation": 0, "num_test": 0})
    assert len(rows(every.validation_batches())) > 5
    assert not rows(every.validation_batches()) & rows(every.test_batches())
    assert "Validation data: 5 sequences" in task.describe()[2]


def test_a_test_pass_gives_the_numbers_of_a_validation_pass():
    task = create_task("recall", RECALL)
    module = task.module(tiny_model(task), Training(), 0.1)
    summaries = []
    for end in (module.on_validation_epoch_end, module.on_test_epoch_end):
        for batch in task.test_batches():
            module.test_step(batch, 0)
        end()
        summaries.append(module.summary)
    assert summaries[0] == summaries[1]
    assert summaries[0]["loss"] > 0


def test_a_task_of_ones_own_can_be_named(monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    tasks.register_task("mine", RecallTask)
    tasks.register_task("later", "gatework.tasks.recall:RecallTask")
    assert tasks.list_tasks() == ["later", "mine", "recall", "text"]
    assert create_task("mine", RECALL) == create_task("later", RECALL) == create_task("recall", RECALL)
    with pytest.raises(ValueError, match="'recall' is already registered"):
        tasks.register_task("recall", RecallTask)


def test_a_mixture_keeps_its_segments_apart():
    segments = [{**MQAR, "num_examples": 10}, {**MQAR, "input_seq_len": 32, "num_examples": 10}]
    task = create_task("recall", {"train": segments, "test": segments, "mode": "compat"})
    assert task.length == 32
    lengths = sorted(batch.inputs.shape[1] for batch in task.train_batches(5, steps=4, seed=0))
    assert lengths == [16, 16, 32, 32]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_trains(variant):
    options = {
        "mqar": RECALL,
        "compositional": {"vocab_size": 60, "input_seq_len": 30, "num_kv_pairs": 4},
        "forgetting": {"vocab_size": 60, "input_seq_len": 32, "num_kv_pairs": 4, "num_updates": 2},
        "vocab_majority": {"vocab_size": 6, "input_seq_len": 12},
    }.get(variant, {"input_seq_len": 12})
    setting = {"variant": variant, **options, "num_train": 32, "num_test": 8}
    result = execute(spec(setting=setting, training={"steps": 2, "batch_size": 16, "evaluations": 1}))
    assert result["status"] == "finished"
    assert 0 <= result["metrics"]["quality"] <= 1


def test_accuracy_is_the_mean_over_sequences():
    class Fixed(torch.nn.Module):
        """A model whose first choice is always token 1."""

        def labelled_logits(self, inputs, labels):
            labels = labels[labels != -100]
            return torch.eye(3)[torch.ones_like(labels)], labels

    module = NextTokenModule(GateworkForCausalLM(GateworkConfig(hidden_size=4)), Training(), 0.1)
    module.model = Fixed()
    inputs = torch.zeros(2, 4, dtype=torch.long)
    labels = torch.tensor([[1, 2, 2, 2], [-100, 1, -100, -100]])
    module.validation_step(TokenBatch(inputs, labels, [{"pairs": 4}, {"pairs": 1}]), 0)
    module.on_validation_epoch_end()
    assert module.summary["accuracy"] == pytest.approx((0.25 + 1) / 2)
    assert module.summary["slices"] == {"pairs=4": 0.25, "pairs=1": 1.0}
    one_hot_loss = [math.log(1 + 2 * math.exp(-1)) + (label != 1) for label in (1, 2, 2, 2, 1)]
    assert module.summary["loss"] == pytest.approx(sum(one_hot_loss) / 5)


def test_the_learning_rate_rises_and_falls():
    training = Training(steps=100, warmup=0.1, final_rate=0.2)
    rates = [rate_factor(step, training) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == 1.0
    assert rates[100] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    task = RecallTask.from_setting(RECALL)
    model = tiny_model(task)
    module = task.module(model, Training(), 0.1)
    batch = next(iter(task.train_batches(4, steps=1, seed=0)))
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    with pytest.raises(DivergedError, match="step 1"):
        module.training_step(batch, 0)


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    task = RecallTask.from_setting(RECALL)
    module = task.module(tiny_model(task), Training(), 0.1)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    with pytest.raises(DivergedError, match="gradient norm is nan"):
        module.configure_gradient_clipping(module.configure_optimizers()["optimizer"])


def test_the_same_run_gives_the_same_numbers():
    first, second = (execute(spec(layers=[{"name": "attention", "dropout": 0.1}])) for _ in range(2))
    assert first["metrics"] == second["metrics"]
    timeless = [{**point, "seconds": 0} for point in first["curve"]]
    assert timeless == [{**point, "seconds": 0} for point in second["curve"]]
    other = execute(spec(layers=[{"name": "attention", "dropout": 0.1}], seed=1))
    assert other["metrics"] != first["metrics"]


def test_a_hybrid_learns_to_recall():
    segment = {"vocab_size": 40, "num_kv_pairs": 3, "random_non_queries": False}
    result = execute(
        spec(
            setting={**segment, "input_seq_len": 16, "num_train": 32 * 300, "num_test": 200},
            layers=[{"name": "base_conv"}, {"name": "attention"}],
            width=16,
            training={"steps": 300, "batch_size": 32, "evaluations": 2},
            model={"channel_mixer": "none", "init_linear": False},
        )
    )
    assert result["metrics"]["quality"] > 0.95
    assert result["curve"][-1]["train_loss"] < 0.5


def test_text_is_compressed():
    result = execute(
        spec(
            task="text",
            setting={"length": 64, "num_test": 8, "max_bytes": 2_000_000},
            layers=[{"name": "base_conv"}, {"name": "attention"}],
            width=32,
            training={"steps": 60, "batch_size": 8, "evaluations": 2},
            model={"init_linear": False},
        )
    )
    assert result["metrics"]["quality"] < 5.0  # bits per byte; guessing takes 8
    assert result["metrics"]["quality"] == pytest.approx(result["metrics"]["loss"] / math.log(2))


@pytest.mark.parametrize(("evaluations", "steps"), [(3, [2, 4, 6]), (4, [1, 2, 3, 4, 5, 6]), (1, [6])])
def test_the_curve_ends_with_the_last_step(evaluations, steps):
    result = execute(spec(training={"steps": 6, "batch_size": 16, "evaluations": evaluations}))
    assert [point["step"] for point in result["curve"]] == steps
    assert result["curve"][-1]["quality"] == result["metrics"]["validation_quality"]
    assert [point["tokens"] for point in result["curve"]] == [step * 16 * 16 for step in steps]


def test_a_curve_whose_points_do_not_divide_the_steps_has_one_more():
    result = execute(spec(training={"steps": 7, "batch_size": 16, "evaluations": 3}))
    assert [point["step"] for point in result["curve"]] == [2, 4, 6, 7]


def test_costs_are_those_of_the_model():
    task = RecallTask.from_setting(RECALL)
    result = execute(spec())
    model = tiny_model(task, mixers=["base_conv"], num_hidden_layers=2)
    assert result["cost"]["state_bytes"] == 4 * model.state_size(16)
    longer = execute(spec(training={"steps": 6, "batch_size": 32, "evaluations": 2}))
    assert longer["cost"]["activation_bytes"] == pytest.approx(
        2 * result["cost"]["activation_bytes"], rel=0.05
    )


def test_memory_is_that_of_the_largest_step_whatever_the_order():
    segments = [{**MQAR, "num_examples": 64}, {**MQAR, "input_seq_len": 32, "num_examples": 64}]
    setting = {"train": segments, "test": [{**segments[0], "num_examples": 5}]}
    training = {"steps": 8, "batch_size": 16, "evaluations": 1}
    costs = [execute(spec(setting=setting, training=training, seed=seed))["cost"] for seed in (0, 1, 2)]
    assert len({cost["activation_bytes"] for cost in costs}) == 1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_task("recal", {}), "did you mean 'recall'"),
        (lambda: create_task("recall", {"variant": "mqra"}), "did you mean 'mqar'"),
        (lambda: create_task("recall", {"input_seq_len": 15}), "input_seq_len"),
        (lambda: create_task("recall", {"train": [MQAR], "test": [MQAR], "vocab_size": 3}), "vocab_size"),
        (lambda: create_task("recall", {"train": [MQAR], "test": []}), "test must hold"),
        (
            lambda: create_task("recall", {"train": [MQAR], "test": [MQAR], "validation": []}),
            "validation must",
        ),
        (lambda: create_task("recall", {"mode": "slow"}), "mode must be"),
        (lambda: create_task("text", {"lenght": 4}), "did you mean 'length'"),
        (lambda: create_task("text", {"length": 0}), "length must be"),
        (lambda: create_task("text", {"suffixes": [".py"]}), "suffixes"),
        (lambda: Training(steps=0), "training.steps"),
        (lambda: Training(steps=2, evaluations=3), "training.evaluations"),
        (lambda: Training(warmup=2.0), "training.warmup"),
        (lambda: Quality("accuracy", "bigger"), "better must be"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
