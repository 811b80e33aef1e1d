"""Every recipe is a study that could start now: it parses, and each of its models can be built."""

from __future__ import annotations

import pytest

from gatework.cli import compare
from gatework.cli.parser import Parser
from gatework.study.options import CompareOptions
from gatework.study.plan import check_runs, make_study
from tests.recipe_files import RECIPES, language_models, studies, task_of, trainings


def test_every_recipe_is_of_one_kind():
    kinds = (studies(), trainings(), language_models())
    assert all(kinds)
    assert sorted(path for kind in kinds for path in kind) == sorted(RECIPES.rglob("*.yaml"))
    assert {path.stem: task_of(path) for path in studies() if path.parent.name == "demo"} == {
        "recall": "recall",
        "text": "text",
    }


@pytest.mark.parametrize("path", studies(), ids=lambda path: path.stem)
def test_a_recipe_could_start(path):
    parser = Parser()
    words = [task_of(path), f"--config={path}"]
    compare.add_arguments(parser, words)
    options = parser.parse_args(words).as_dict()
    del options["config"], options["plugin"]
    runs = CompareOptions.of(options.pop("task"), **options).grid()
    check_runs(runs)
    study = make_study(path.stem, runs, command="gatework compare", notes=options["notes"])
    assert len(study.notes) >= 4
