"""What a task declares: stored and read, refused where it makes no sense, known without anything heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from gatework import tasks
from gatework.data.loader import ResumableLoader
from gatework.data.segment import TokenBatch
from gatework.tasks import create_task, register_task, task_class, task_declaration
from gatework.tasks.candidates import Candidate, definition_text, parse_candidates
from gatework.tasks.declaration import (
    COLUMNS,
    OPTIONS,
    Axis,
    Companion,
    Cost,
    Declaration,
    Scaling,
    ScalingCurve,
    Unit,
)
from gatework.tasks.language import LANGUAGE, LanguageTask, parse_mixers
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Quality, Task
from gatework.tasks.text_declaration import TEXT

IMAGES = Declaration(
    Axis("model"),
    Axis("size", title="image size (pixels)", default=(16,)),
    Unit("image"),
    costs=(Cost("weights_bytes", "weights", "bytes"),),
    scalings=(Scaling("inference", "resolutions", "pixels", (ScalingCurve("rate", "Speed", "Images/s"),)),),
    sections=("mine:Section",),
)


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))


@pytest.mark.parametrize("declared", [LANGUAGE, TEXT, IMAGES], ids=["language", "text", "images"])
def test_words_are_stored_and_read(declared):
    stored = json.loads(json.dumps(declared.to_json()))
    assert Declaration.from_json(stored, known=declared) == declared
    alone = Declaration.from_json(stored)
    assert alone.to_json() == declared.to_json()
    assert (alone.options(), alone.budgets) == (declared.options(), declared.budgets)


def test_the_names_that_are_taken_are_those_of_every_study():
    from gatework.study import options, results

    assert {"task", "config", "plugin", *options.OPTIONS} <= OPTIONS
    assert set(results.METRICS) <= COLUMNS


def test_what_follows_from_the_words():
    assert IMAGES.budgets == ("steps", "images", "flops", "seconds")
    assert IMAGES.options() == ["models", "sizes", "resolutions"]
    assert (IMAGES.unit.rate, IMAGES.unit.total) == ("images_per_second", "training_images")
    assert (IMAGES.unit.flops, IMAGES.unit.example) == ("flops_per_image", "image")
    costs = [cost.key for cost in IMAGES.all_costs]
    assert costs == ["parameters", "weights_bytes", "activation_bytes", "training_flops"]
    assert LANGUAGE.lean_cost.noun == "decoding state"
    assert IMAGES.scalings[0].columns([{"pixels": 8, "rate": 3.5}]) == {"inference rate at 8": 3.5}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("two words"), "name must be one word of letters, digits and underscores"),
        (lambda: Unit(""), "name must be one word"),
        (lambda: Unit("image", plural="images/s"), "plural must be one word"),
        (lambda: Cost("state bytes", "state"), "key must be one word"),
        (lambda: ScalingCurve("rate", "Speed", "x", hover="fast"), r"hover must be a text with one \{\}"),
        (lambda: Scaling("a", "b", "c", ()), "curves of scaling 'a' must hold at least one"),
        (lambda: replace(IMAGES, sizes=Axis("model")), "options of a task must differ, got twice: models"),
        (lambda: replace(IMAGES, companion=Companion("sizes", "x")), "got twice: sizes"),
        (lambda: replace(IMAGES, sizes=Axis("seed")), "every study has a column or an option 'seed'"),
        (lambda: replace(IMAGES, candidates=Axis("x", plural="settings")), "or an option 'settings'"),
        (lambda: replace(IMAGES, definition="status"), "every study has a column or an option 'status'"),
        (lambda: replace(IMAGES, lean="price"), "lean must be one of parameters, weights_bytes"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_declarations_of_the_built_in_tasks_are_light():
    program = (
        "import sys; from gatework.tasks import list_tasks, task_declaration\n"
        "print([task_declaration(name).candidates.plural for name in list_tasks()])\n"
        "print([name for name in ('torch', 'lightning', 'numpy', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['mixers', 'mixers']", "[]"]
    for name in ("recall", "text"):  # and they are those of the classes
        assert task_class(name).declaration is task_declaration(name)


class Half(Task):
    """A task that lacks most of what it needs."""

    declaration = IMAGES
    quality = Quality("accuracy", "higher")

    def describe(self):
        return []


@pytest.mark.bad_input
def test_a_task_without_a_needed_part_is_refused_by_name():
    with pytest.raises(
        TypeError,
        match="task 'half' lacks train_batches, validation_batches, test_batches, build_model, module, "
        "costs, measure",
    ):
        register_task("half", Half)
    assert "half" not in tasks.list_tasks()
    register_task("later", f"{__name__}:Half")
    with pytest.raises(TypeError, match="task 'later' lacks train_batches"):
        create_task("later", {})
    with pytest.raises(TypeError, match="task 'odd' must be a class, got 3"):
        register_task("odd", 3)
    register_task("gone", "no_such_module:Task")
    with pytest.raises(ValueError, match="task 'gone' cannot be imported from 'no_such_module:Task'"):
        task_declaration("gone")


@pytest.mark.bad_input
def test_an_unknown_setting_is_refused_by_name():
    class Sized(Half):
        """A task with a field."""

        __dataclass_fields__ = {"size": None}  # noqa: RUF012

    with pytest.raises(TypeError, match="setting has no option 'sise'; did you mean 'size'"):
        Sized.from_setting({"sise": 3})


class Sorting:
    """A task as it was written before tasks built their models: no base class, ``vocab_size``, ``length``."""

    quality = Quality("accuracy", "higher", range=(0.0, 1.0))
    vocab_size, length = 17, 8

    def __init__(self, count=4):
        self.count = count

    @classmethod
    def from_setting(cls, setting):
        return cls(**setting)

    def describe(self):
        return [f"Data: {self.count} numbers."]

    def train_batches(self, batch_size, *, steps, seed):
        return ResumableLoader([TokenBatch(*self._tokens(), [])], None, seed=seed)

    validation_batches = test_batches = lambda self: self.train_batches(1, steps=1, seed=0)

    def _tokens(self):
        import torch

        tokens = torch.arange(16).reshape(2, 8)
        return tokens, tokens + 1

    def module(self, model, training, learning_rate):
        return NextTokenModule(model, training, learning_rate)


def test_a_task_of_before_is_one_on_tokens():
    register_task("sorting", Sorting)
    task = create_task("sorting", {"count": 3})
    assert isinstance(task, LanguageTask)
    assert isinstance(task, Sorting)
    assert task.describe() == ["Data: 3 numbers."]
    assert task_declaration("sorting") is LANGUAGE
    model = task.build_model(task.model_options([{"name": "attention"}], 8))
    assert (model.config.vocab_size, model.config.context_length, model.config.hidden_size) == (17, 8, 8)
    assert task.work(next(iter(task.test_batches()))) == 16


def test_candidates_are_read_from_any_form():
    axis = IMAGES.candidates
    assert parse_candidates(["vit", "resnet"], axis)[1] == Candidate("resnet", {"name": "resnet"})
    read = parse_candidates(
        {
            "a": "vit",
            "b": {"name": "vit", "depth": 2, "learning_rates": [0.1], "model": {"drop": 0.1}},
            "resnet": None,
        },
        axis,
    )
    assert read == [
        Candidate("a", {"name": "vit"}),
        Candidate("b", {"name": "vit", "depth": 2}, (0.1,), {"drop": 0.1}),
        Candidate("resnet", {"name": "resnet"}),
    ]
    assert definition_text(read[1].definition) == "vit(depth=2)"
    (hybrid,) = parse_mixers(["base_conv+attention"])
    assert definition_text(hybrid.definition) == "base_conv → attention"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("vit", TypeError, "models must be a list of names or a mapping of labels, got 'vit'"),
        ([], ValueError, "models must name at least one model, got none"),
        ({}, ValueError, "models must name at least one model, got none"),
        ([3], TypeError, "models must hold names, got 3"),
        ({"a": 3}, TypeError, "model 'a' must be a name or a mapping of options, got 3"),
        ({"a": {"learning_rates": 0.1}}, TypeError, "learning_rates of model 'a' must be a list, got 0.1"),
        ({"a": {"model": 3}}, TypeError, "model of model 'a' must be a mapping, got 3"),
        ({"a": {"name": 3}}, TypeError, "name of model 'a' must be text, got 3"),
    ],
)
def test_candidates_of_another_form_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        parse_candidates(value, IMAGES.candidates)
