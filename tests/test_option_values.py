"""Options of tasks, data, trainings, evaluations and masks: impossible numbers are errors that name them."""

from __future__ import annotations

import dataclasses
import types
import typing

import pytest

from gatework import masks
from gatework.data.continuous_recall import ContinuousConfig
from gatework.evaluation.slice_options import SliceOptions
from gatework.study.options import CompareOptions
from gatework.tasks.recall import VARIANTS, RecallTask
from gatework.tasks.task import Training
from gatework.tasks.text_declaration import TextPrediction
from gatework.training.options import FitTraining, TrainerOptions
from gatework.training.recipe import Recipe

NUMBERS = (0, -1, 1.5, float("nan"), float("inf"), True, "3", None)

#: Dataclasses, each with what it cannot be made without.
OPTIONS = {
    "Training": (Training, {}),
    "FitTraining": (FitTraining, {}),
    "TrainerOptions": (TrainerOptions, {}),
    "Recipe": (Recipe, {"task": "recall"}),
    "TextPrediction": (TextPrediction, {}),
    "ContinuousConfig": (ContinuousConfig, {}),
    **{kind.__name__: (kind, {}) for kind in VARIANTS.values()},
}
#: Values at the edge that mean something.
ALLOWED = {
    "weight_decay": (0, 1.5),
    "warmup": (0,),
    "final_rate": (0,),
    "beta2": (0,),
    "gradient_clip": (1.5,),
    "ema_decay": (0,),
    "num_workers": (0,),  # data are loaded in the process itself
    "learning_rate": (1.5,),
    "seed": (0,),
    "temperature": (0, 1.5),  # 0 takes the likeliest token
    "num_updates": (0,),
    "power_a": (-1, 1.5),  # any law that leaves no slot out
}


def numeric_fields(kind: type) -> list[tuple[str, tuple[type, ...]]]:
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        taken = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if {int, float} & set(taken):
            found.append((field.name, taken))
    return found


CASES = [(label, name) for label, (kind, _) in OPTIONS.items() for name, _ in numeric_fields(kind)]


@pytest.mark.bad_input
@pytest.mark.parametrize(("label", "name"), CASES)
def test_impossible_numbers_of_options_are_named(label, name):
    kind, needed = OPTIONS[label]
    taken = dict(numeric_fields(kind))[name]
    for value in NUMBERS:
        if value is None and type(None) in taken:
            continue
        if value in ALLOWED.get(name, ()) and not isinstance(value, bool):
            kind(**needed, **{name: value})
            continue
        is_number = isinstance(value, (int, float) if float in taken else int) and not isinstance(value, bool)
        with pytest.raises(ValueError if is_number else TypeError, match=rf"\b{name}\b.* got "):
            kind(**needed, **{name: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name", ["max_train_count", "length", "max_bytes", "max_tokens", "batch_size", "ar_share"]
)
def test_impossible_numbers_of_an_evaluation_are_named(name):
    for value in (-1, 1.5, float("nan"), True, "3"):
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must be .*, got "):
            SliceOptions(**{name: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [0]}, "width must be at least 1, got 0"),
        ({"widths": [8.5]}, "width must be an integer, got 8.5"),
        ({"seeds": [-1]}, "seed must be at least 0, got -1"),
        ({"seeds": [True]}, "seed must be an integer, got True"),
        ({"learning_rates": [0]}, "learning_rate must be positive, got 0"),
        ({"learning_rates": ["fast"]}, "learning_rate must be a number, got 'fast'"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"workers": 1.5}, "workers must be an integer, got 1.5"),
        ({"budget_amount": 0}, "budget_amount must be positive, got 0"),
        ({"budget_amount": "10"}, "budget_amount must be a number, got '10'"),
        ({"budget": "step"}, "budget must be one of .*got 'step'; did you mean 'steps'"),
        ({"decode_contexts": [0]}, "decode_contexts must be at least 2, got 0"),
    ],
)
def test_impossible_numbers_of_a_study_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CompareOptions.of("recall", ["attention"], **options).grid()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data_seed": -1}, "data_seed must be at least 0, got -1"),
        ({"data_seed": 1.5}, "data_seed must be an integer, got 1.5"),
        ({"num_train": 0}, "num_train must be at least 1, got 0"),
        ({"mode": "slow"}, "mode must be one of fast, compat, got 'slow'"),
        ({"vocab_sise": 8}, "no option 'vocab_sise'; did you mean 'vocab_size'"),
    ],
)
def test_impossible_settings_of_recall_are_named(setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RecallTask.from_setting(setting)


#: Masks of one number each, by what it is called, and the least it may be.
MASKS = {
    "left": (lambda value: masks.SlidingWindow(value, 0), 0),
    "right": (lambda value: masks.SlidingWindow(0, value), 0),
    "window": (lambda value: masks.GlobalWindow(value), 0),
    "prefix": (lambda value: masks.PrefixLM(value), 0),
    "block": (lambda value: masks.BlockCausal(value), 1),
    "num_random": (lambda value: masks.RandomBlocks(4, value, 0), 0),
    "shape": (lambda value: masks.Windows(value, 1), 1),
    "halo": (lambda value: masks.Halo((4, 4), 2, value), 0),
    "stride": (lambda value: masks.Neighborhood((4, 4), 3, stride=value), 1),
    "dilation": (lambda value: masks.Neighborhood((4, 4), 1, dilation=value), 1),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", MASKS)
def test_impossible_numbers_of_masks_are_named(name):
    build, least = MASKS[name]
    build(least)
    for value in (1.5, float("nan"), float("inf"), True, "3", None):
        with pytest.raises(TypeError, match=f"^{name} must be an integer, got "):
            build(value)
    for value in (least - 1, -5):
        with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {value}$"):
            build(value)
