"""``gatework report DIRECTORY``: write the page of a stored study anew, or one that compares two studies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    parser.add_argument("directory", type=str, help="directory of a study")
    parser.add_argument(
        "--against", type=str, default=None, help="directory of another study, to be compared with the first"
    )
    parser.add_argument(
        "--output",
        type=str,
        default=None,
        help="page to write; by default report.html in DIRECTORY, or comparison.html with --against",
    )
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Write the page and print its path.

    Returns:
        0; what is wrong with a study is raised as an error.
    """
    from gatework.study.comparison_page import write_comparison
    from gatework.study.report import write_report

    directory = Path(arguments.directory)
    output = None if arguments.output is None else Path(arguments.output)
    if arguments.against is None:
        page = write_report(directory, output)
    else:
        page = write_comparison(directory, Path(arguments.against), output)
    print(f"page: {page}", file=sys.stderr)
    return 0
