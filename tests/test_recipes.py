"""Every recipe is a study that could start now: it parses, and each of its models can be built."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentParser

from gatework.cli import compare
from gatework.study.plan import check_runs, make_study, parse_mixers, plan_runs
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
    parser = ArgumentParser(exit_on_error=False)
    compare.add_arguments(parser)
    task = task_of(path)
    options = parser.parse_args([task, f"--config={path}"]).as_dict()
    runs = plan_runs(
        task,
        mixers=parse_mixers(options["mixers"]),
        settings={name: {**options["setting"], **own} for name, own in options["settings"].items()},
        **{axis: options[axis] for axis in ("widths", "learning_rates", "seeds", "training", "model")},
    )
    check_runs(runs)
    study = make_study(path.stem, runs, command="gatework compare", notes=options["notes"])
    assert len(study.notes) >= 4
