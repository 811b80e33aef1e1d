"""``gatework compare TASK``: the main job. Train mixers on one task, resume if killed, write the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.cli.plain_values import PlainValue
from gatework.study.compare import CHOICES, compare
from gatework.study.plan import DECODE_CONTEXTS, DEFAULT_MIXERS
from gatework.study.spec import BUDGETS
from gatework.tasks import list_tasks


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; all but the task and plugins may stand in a YAML file."""
    parser.add_argument("task", type=str, help=f"what to train for: {', '.join(list_tasks())}")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--mixers",
        type=Literal["all"] | list[str] | dict[str, PlainValue],
        default=list(DEFAULT_MIXERS),
        help="names such as [attention,base_conv+attention], labels with their layers (YAML), or `all`",
    )
    parser.add_argument("--widths", type=list[int], default=[32], help="numbers of channels, such as [32,64]")
    parser.add_argument(
        "--learning_rates",
        type=list[float],
        default=[0.005],
        help="peak learning rates; the best on validation data is reported",
    )
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="seeds of weights and data order")
    parser.add_argument(
        "--setting",
        type=dict[str, PlainValue],
        default={},
        help="options of the task, such as --setting.length 128",
    )
    parser.add_argument(
        "--settings",
        type=dict[str, dict[str, PlainValue]],
        default={},
        help="several settings by name (YAML)",
    )
    parser.add_argument(
        "--training",
        type=dict[str, PlainValue],
        default={},
        help="such as --training.steps 2000 (the same for all)",
    )
    parser.add_argument(
        "--model", type=dict[str, PlainValue], default={}, help="options of the model around the mixers"
    )
    parser.add_argument(
        "--decode_contexts",
        type=list[int],
        default=list(DECODE_CONTEXTS),
        help="lengths of context at which decoding is timed after the training; [] for none",
    )
    parser.add_argument(
        "--recall",
        type=dict[str, PlainValue] | None,
        default=None,
        help="for text: options of a recall study of the same mixers, as {} or such as {widths: [32]} (YAML)",
    )
    parser.add_argument("--title", type=str, default=None, help="heading of the page")
    parser.add_argument("--notes", type=list[str], default=[], help="sentences for the page")
    parser.add_argument("--output", type=str, default=None, help="study directory, runs/TASK by default")
    _add_budget_and_executor(parser)


def _add_budget_and_executor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--budget", choices=list(BUDGETS), default="steps", help="what is held equal between mixers"
    )
    parser.add_argument(
        "--budget_amount",
        type=float,
        default=None,
        help="how much of it; by default what the first mixer needs for its steps",
    )
    parser.add_argument(
        "--executor",
        choices=list(CHOICES),
        default="local",
        help="processes of this machine, a Ray cluster, or print a command per run for a scheduler",
    )
    parser.add_argument("--workers", type=int, default=None, help="runs at a time, one per core by default")
    parser.add_argument(
        "--ray_address",
        type=str,
        default=None,
        help="address of a Ray cluster, RAY_ADDRESS by default; without one, a Ray on this machine",
    )
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Plan, check, execute what is missing, and write the page.

    Returns:
        0 if every run finished or diverged, 1 if one failed or is missing, 128 + signal if interrupted; that
        holds for the runs of a recall study beside it too.
    """
    options = arguments.as_dict()
    del options["config"]
    plugins = options.pop("plugin")
    study = compare(**options, plugins=plugins, command=shlex.join(command))
    if study.outcome is None:
        return 0
    print(f"page: {study.directory / 'report.html'}", file=sys.stderr)
    beside = study.companion.outcome if study.companion else None
    return max(study.outcome.exit_code, beside.exit_code if beside else 0)
