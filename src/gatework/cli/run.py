"""``gatework run DIRECTORY RUN``: execute one run of a planned study, as schedulers do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.signals import sigterm_ends_process


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    parser.add_argument("directory", type=str, help="directory of a study")
    parser.add_argument("run_id", type=str, help="the run, as `compare --executor print` names it")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of PyTorch; sums depend on them, so all runs want the same",
    )
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Execute the run and store its result, unless that is there already.

    Returns:
        0 if it finished or diverged, now or before, 1 if it failed, 128 + signal if stopped.
    """
    from gatework.study.single_run import run_one

    if arguments.threads < 1:
        raise ValueError(f"threads must be at least 1, got {arguments.threads}")
    with sigterm_ends_process():  # a scheduler took the machine back: no failure of the run, nothing to store
        result, executed = run_one(Path(arguments.directory), arguments.run_id, num_threads=arguments.threads)
    before = "" if executed else "nothing to do, already "
    message = result["message"]
    print(
        f"{result['run_id']}: {before}{result['status']}{f': {message}' if message else ''}", file=sys.stderr
    )
    return 1 if result["status"] == "failed" else 0
