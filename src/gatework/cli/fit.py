"""``gatework fit``: train one model from a recipe; the same command resumes what was interrupted."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.recipe_options import add_recipe_arguments, recipe_of


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments; all but the plugins may stand in a YAML file."""
    add_recipe_arguments(parser)
    parser.add_argument("--output", type=str, default=None, help="directory, runs/fit/NAME by default")


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Train, or go on with what the directory holds.

    Returns:
        0 when training has ended, 1 if it diverged, 128 + signal if it was interrupted.
    """
    recipe = recipe_of(arguments)
    directory = Path(arguments.output or f"runs/fit/{_name(arguments)}")
    from gatework.training.fit import fit

    return fit(recipe, directory, plugins=arguments.plugin, resume_hint=shlex.join(command))


def _name(arguments: Any) -> str:
    configs = [Path(os.fspath(config)) for config in arguments.config or [] if config is not None]
    return configs[0].stem if configs else str(arguments.task)
