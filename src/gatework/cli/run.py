"""``gatework run DIRECTORY RUN``: execute one run of a planned study, as schedulers do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument


def add_arguments(parser: ArgumentParser) -> None:
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
    from gatework.study.cell import run_cell

    if arguments.threads < 1:
        raise ValueError(f"threads must be at least 1, got {arguments.threads}")
    with _sigterm_ends_at_once():
        result, executed = run_cell(
            Path(arguments.directory), arguments.run_id, num_threads=arguments.threads
        )
    before = "" if executed else "nothing to do, already "
    message = result["message"]
    print(
        f"{result['run_id']}: {before}{result['status']}{f': {message}' if message else ''}", file=sys.stderr
    )
    return 1 if result["status"] == "failed" else 0


@contextmanager
def _sigterm_ends_at_once() -> Iterator[None]:
    """A scheduler that takes the machine back is no failure of the run: nothing is stored."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
