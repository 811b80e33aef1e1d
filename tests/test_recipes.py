"""Every recipe is a study that could start now: it parses, and each of its models can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from gatework.cli import compare
from gatework.study.plan import check_runs, make_study, parse_mixers, plan_runs

RECIPES = Path(__file__).parents[1] / "recipes"


#: Recipes of comparisons; those of single trainings are tested with ``gatework fit``.
STUDIES = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "fit")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_recipe_could_start(path):
    parser = ArgumentParser(exit_on_error=False)
    compare.add_arguments(parser)
    task = "text" if "text" in path.stem else "recall"
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
