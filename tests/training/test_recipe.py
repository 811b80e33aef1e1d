"""Recipes: what they may say, what they may not name, and which directory is whose."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from gatework.files import FileError
from gatework.training.callbacks import make_callbacks
from gatework.training.fit import fit
from gatework.training.options import FitTraining, TrainerOptions
from gatework.training.recipe import Recipe, differences, read_recipe
from gatework.training.trainer import make_loggers, make_trainer
from tests.training.runs import recipe


def test_a_recipe_survives_its_file(tmp_path):
    written = recipe(callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {}}])
    (tmp_path / "recipe.yaml").write_text(written.to_yaml())
    read = read_recipe(tmp_path / "recipe.yaml")
    assert read == written
    assert differences(read, written) == []


def test_differences_are_named_unless_they_change_nothing():
    old = recipe()
    assert differences(old, replace(old, learning_rate=0.5)) == ["learning_rate: 0.01 -> 0.5"]
    deeper = replace(old, model={**old.model, "hidden_size": 9})
    assert differences(old, deeper) == ["model.hidden_size: 8 -> 9"]
    quiet = replace(old, trainer=replace(old.trainer, num_workers=3, progress_bar=False))
    assert differences(old, quiet) == []


def test_a_directory_of_another_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe().to_yaml())
    with pytest.raises(FileError, match=r"another recipe \(seed: 0 -> 1; training.steps: 18 -> 19\)"):
        fit(recipe(steps=19, seed=1), tmp_path)
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "thesis.tex").touch()
    with pytest.raises(FileError, match=r"holds other files \(thesis.tex\)"):
        fit(recipe(), tmp_path / "stranger")


@pytest.mark.parametrize(
    "path",
    ["spy.Callback", "os.system", "subprocess.Popen", "EarlyStopping", "lightning.Trainer", "", "a..b"],
)
def test_classes_that_are_not_allowed_are_not_imported(tmp_path, monkeypatch, path):
    (tmp_path / "spy.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for base in ({}, {"init_args": {"cmd": "touch x"}}):
        named = recipe(callbacks=[{"class_path": path, **base}])
        with pytest.raises(ValueError, match="is not allowed in a recipe"):
            fit(named, tmp_path / "run")
    assert "spy" not in sys.modules
    assert not (tmp_path / "run").exists()


def test_callbacks_of_the_list_and_of_plugins(tmp_path, monkeypatch):
    path = "lightning.pytorch.callbacks.EarlyStopping"
    made = make_callbacks([{"class_path": path, "init_args": {"monitor": "validation_loss"}}])
    assert isinstance(made[0], EarlyStopping)
    (tmp_path / "my_plugin.py").write_text(
        "import os\nfrom lightning import Callback\nclass Mine(Callback):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_plugin

    assert type(make_callbacks([{"class_path": "my_plugin.Mine"}], ["my_plugin"])[0]) is my_plugin.Mine
    with pytest.raises(ValueError, match="not allowed"):
        make_callbacks([{"class_path": "my_plugin.Mine"}])
    with pytest.raises(ValueError, match="not allowed"):
        make_callbacks([{"class_path": "my_plugin.os.system"}], ["my_plugin"])
    with pytest.raises(TypeError, match=r"no subclass of lightning\.Callback"):
        make_callbacks([{"class_path": "my_plugin.os"}], ["my_plugin"])
    with pytest.raises(TypeError, match=r"init_args of .*unexpected"):
        make_callbacks([{"class_path": path, "init_args": {"monitr": 1, "monitor": "a"}}])


def test_epochs_count_steps():
    assert FitTraining(epochs=3).resolved(7, 2).steps == 10
    assert FitTraining(steps=5, evaluations=2).resolved(None, 1).steps == 5
    with pytest.raises(ValueError, match="needs data that end"):
        FitTraining(epochs=3).resolved(None, 1)
    with pytest.raises(ValueError, match="less than one step"):
        FitTraining(epochs=1).resolved(1, 2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "task must be the name"),
        ({"task": "recall", "sead": 1}, "no 'sead'"),
        ({"task": "recall", "training": {"stepz": 1}}, "training has no option 'stepz'"),
        ({"task": "recall", "training": 3}, "training must be a mapping"),
        ({"task": "recall", "trainer": {"precision": "8"}}, "trainer.precision must be one of"),
        ({"task": "recall", "trainer": {"devices": 0}}, "trainer.devices must be at least 1"),
        ({"task": "recall", "trainer": {"ema_decay": 1.0}}, "trainer.ema_decay must be"),
        ({"task": "recall", "training": {"epochs": 0}}, "training.epochs must be at least 1"),
        ({"task": "recall", "training": {"optimizer": "lion"}}, "training.optimizer must be"),
        ({"task": "recall", "learning_rate": -1}, "learning_rate must be positive, got -1"),
        ({"task": "recall", "seed": -1}, "seed must be at least 0, got -1"),
        ({"task": "recall", "setting": 3}, "setting must be a mapping"),
        ({"task": "recall", "callbacks": {}}, "callbacks must be a list"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Recipe.from_dict(values)


@pytest.mark.parametrize("text", ["[1", "3", "!!python/object/apply:os.system ['true']", "a: &a [*a"])
def test_broken_recipes_are_typed_errors(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(FileError, match=r"recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.bad_input
def test_what_does_not_run_here_is_said(tmp_path):
    with pytest.raises(ValueError, match="'fsdp' needs CUDA devices"):
        make_trainer(TrainerOptions(strategy="fsdp", accelerator="cpu"), steps=1, validate_every=1)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"pip install 'gatework\[{name}\]'"):
            make_loggers(TrainerOptions(**{name: True}), tmp_path, first_step=1, name="run")


@pytest.mark.parametrize(
    "wrong", [{"setting": {"num_kv_pairs": 10**6}}, {"model": {"hidden_sise": 8}}], ids=["task", "model"]
)
def test_an_impossible_recipe_makes_no_directory(tmp_path, wrong):
    with pytest.raises((TypeError, ValueError), match=r"num_kv_pairs|hidden_sise"):
        fit(replace(recipe(), **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()
