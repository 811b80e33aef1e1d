"""The recipes in ``recipes/fit`` can start, and reach the level that the documentation states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gatework.cli import main
from gatework.training.recipe import read_recipe
from gatework.training.trained import make_task

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "fit").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_could_start(path):
    recipe = read_recipe(path)
    task = make_task(recipe)
    assert task.build_model(recipe.model).num_parameters() < 400_000


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reaches_its_level(path, tmp_path):
    assert main(["fit", "--config", str(path), "--output", str(tmp_path / "run")]) == 0
    quality = json.loads((tmp_path / "run" / "result.json").read_text())["test"]["quality"]
    levels = {"recall": quality > 0.98, "text": quality < 2.6}
    assert levels[path.stem], quality
