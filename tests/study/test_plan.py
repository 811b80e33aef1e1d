"""What a study says of its own plan."""

from __future__ import annotations

import pytest

from gatework.study.plan import training_facts
from gatework.study.spec import RunSpec
from gatework.tasks.language import LANGUAGE


def run(mixer, rate):
    return RunSpec(
        task="recall",
        setting={},
        setting_name="N=16",
        candidate=mixer,
        definition=[{"name": mixer}],
        size=8,
        learning_rate=rate,
        seed=0,
        training={"steps": 2, "batch_size": 4, "evaluations": 1},
    )


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            {"attention": [0.01, 0.003], "mamba": [0.003, 0.01]},
            "Learning rates tried: 0.003, 0.01 for every mixer.",
        ),
        (
            {"attention": [0.003], "mamba": [0.01]},
            "Learning rates fixed before the study ran: attention 0.003; mamba 0.01.",
        ),
        ({"attention": [0.003]}, "Learning rates fixed before the study ran: attention 0.003."),
    ],
)
def test_learning_rates_are_said_once_where_they_are_the_same(rates, said):
    runs = [run(mixer, rate) for mixer, values in rates.items() for rate in values]
    assert training_facts(runs, LANGUAGE)[-1] == said
