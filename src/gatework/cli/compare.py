"""``gatework compare TASK``: the main job. Train mixers on one task, resume if killed, write the page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.study.plan import DEFAULT_MIXERS, check_runs, make_study, parse_mixers, plan_runs
from gatework.tasks import list_tasks


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments; all but the task may stand in a YAML file."""
    parser.add_argument("task", choices=list_tasks(), help="what to train for")
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--mixers",
        type=list[str] | dict[str, Any],
        default=list(DEFAULT_MIXERS),
        help="names such as [attention,base_conv+attention], or labels with their layers (YAML)",
    )
    parser.add_argument("--widths", type=list[int], default=[32], help="numbers of channels, such as [32,64]")
    parser.add_argument("--learning_rates", type=list[float], default=[0.005], help="peak learning rates")
    parser.add_argument("--seeds", type=list[int], default=[0, 1], help="seeds of weights and data order")
    parser.add_argument(
        "--setting", type=dict[str, Any], default={}, help="options of the task, such as --setting.length 128"
    )
    parser.add_argument(
        "--settings", type=dict[str, dict[str, Any]], default={}, help="several settings by name (YAML)"
    )
    parser.add_argument(
        "--training", type=dict[str, Any], default={}, help="such as --training.steps 2000 (the same for all)"
    )
    parser.add_argument(
        "--model", type=dict[str, Any], default={}, help="options of the model around the mixers"
    )
    parser.add_argument("--title", type=str, default=None, help="heading of the page")
    parser.add_argument("--notes", type=list[str], default=[], help="sentences for the page")
    parser.add_argument("--output", type=str, default=None, help="study directory, runs/TASK by default")
    parser.add_argument("--workers", type=int, default=None, help="processes, one per core by default")


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Plan, check, execute what is missing, and write the page.

    Returns:
        0 if every run finished or diverged, 1 if one failed or is missing, 128 + signal if interrupted.
    """
    from gatework.study.engine import run_study
    from gatework.study.report import write_report

    directory = Path(arguments.output or f"runs/{arguments.task}")
    options = arguments.as_dict()
    settings = options["settings"] or {_setting_name(options["setting"]): {}}
    runs = plan_runs(
        arguments.task,
        mixers=parse_mixers(options["mixers"]),
        settings={name: {**options["setting"], **own} for name, own in settings.items()},
        widths=options["widths"],
        learning_rates=options["learning_rates"],
        seeds=options["seeds"],
        training=options["training"],
        model=options["model"],
    )
    check_runs(runs)
    study = make_study(
        directory.resolve().name,
        runs,
        command=shlex.join(command),
        title=options["title"],
        notes=options["notes"],
    )
    outcome = run_study(study, directory, num_workers=options["workers"])
    page = write_report(directory)
    print(f"page: {page}", file=sys.stderr)
    return outcome.exit_code


def _setting_name(setting: dict[str, Any]) -> str:
    """Name a setting given by options alone."""
    return ", ".join(f"{key}={value}" for key, value in sorted(setting.items())) or "default"
