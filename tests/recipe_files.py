"""Which recipes there are, and what each of them is for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from gatework.tasks.text import TextSource, TextTask

RECIPES = Path(__file__).parents[1] / "recipes"
#: Trainings that need a cluster and a corpus from elsewhere: tests change what they need before they run one.
LANGUAGE_MODELS = RECIPES / "zoology" / "language_models"


def studies() -> list[Path]:
    """Recipes of comparisons, for ``gatework compare``."""
    return [path for path in _all() if "task" not in yaml.safe_load(path.read_text())]


def trainings() -> list[Path]:
    """Recipes of single trainings, for ``gatework fit``, that a laptop finishes."""
    return [path for path in _all() if path not in language_models() and path not in studies()]


def language_models() -> list[Path]:
    return sorted(LANGUAGE_MODELS.glob("*.yaml"))


def task_of(study: Path) -> str:
    """The task of a study, which its recipe does not name: that whose options its settings are."""
    recipe = yaml.safe_load(study.read_text())
    options = set(recipe.get("setting", {})).union(*recipe["settings"].values())
    known = {field.name for kind in (TextSource, TextTask) for field in fields(kind)}
    return "text" if options <= known else "recall"


def _all() -> list[Path]:
    return sorted(RECIPES.rglob("*.yaml"))
