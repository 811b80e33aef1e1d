"""The options that ``fit``, ``validate`` and ``predict`` share: a recipe, and what may be changed in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from gatework.cli import add_plugin_argument
from gatework.cli.dataclass_options import add_dataclass_options
from gatework.cli.plain_values import PlainValue
from gatework.training.callbacks import check_callbacks
from gatework.training.options import FitTraining, TrainerOptions
from gatework.training.recipe import Recipe, read_recipe

_SECTIONS = ("task", "setting", "model", "learning_rate", "seed", "training", "trainer", "callbacks")


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Add the parts of a recipe, and ``--plugin``, which no recipe may hold."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument("--task", type=str, default=None, help="what to train for; `gatework list tasks`")
    parser.add_argument(
        "--setting",
        type=dict[str, PlainValue],
        default={},
        help="options of the task, such as --setting.length 128",
    )
    parser.add_argument(
        "--model",
        type=dict[str, PlainValue],
        default={},
        help="options of the model, such as --model.hidden_size 64 for a task on tokens (GateworkConfig)",
    )
    parser.add_argument("--learning_rate", type=float, default=0.003, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data order and dropout")
    add_dataclass_options(parser, FitTraining, prefix="training")
    add_dataclass_options(parser, TrainerOptions, prefix="trainer")
    parser.add_argument(
        "--callbacks",
        type=list[PlainValue],
        default=[],
        help="list of {class_path, init_args}, of Lightning's from a list or of a plugin's",
    )
    add_plugin_argument(parser)


def add_weights_arguments(parser: ArgumentParser) -> None:
    """Add what says which trained model is meant: a training, or a recipe and a file of weights."""
    parser.add_argument(
        "--run", type=str, default=None, help="directory of a training, made by `gatework fit`"
    )
    parser.add_argument(
        "--checkpoint",
        type=str,
        default=None,
        help="last or best of the training, or a file of weights: .ckpt, .safetensors, or the authors' own",
    )


def recipe_of(arguments: Any) -> Recipe:
    """Make the recipe that the arguments say.

    Raises:
        TypeError: If an option is unknown or has the wrong type.
        ValueError: If a value is impossible, or a callback may not be named.
    """
    values = arguments.as_dict()
    if values["task"] is None:
        raise ValueError("--task must say what to train for; or give a recipe with --config")
    check_callbacks(values["callbacks"], values["plugin"])
    return Recipe.from_dict({name: values[name] for name in _SECTIONS})


def recipe_and_weights(arguments: Any) -> tuple[Recipe, Path]:
    """Return the recipe and the file of weights that the arguments mean.

    Raises:
        CheckpointError: If there are no such weights.
        TypeError: If an option is unknown or has the wrong type.
        ValueError: If a value is impossible, or neither a training nor a recipe with weights is named.
    """
    from gatework.training.trained import weights_of_run

    if arguments.run is not None:
        if arguments.config or arguments.task is not None:
            raise ValueError("--run has a recipe of its own: give it, or --config with --checkpoint")
        directory = Path(arguments.run)
        return read_recipe(directory / "recipe.yaml"), weights_of_run(directory, arguments.checkpoint)
    if arguments.checkpoint is None:
        raise ValueError("--run must name a training; or give a recipe with --config, and --checkpoint")
    return recipe_of(arguments), weights_of_run(Path(), str(Path(arguments.checkpoint)))
