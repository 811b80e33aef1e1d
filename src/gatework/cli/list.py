"""``gatework list``: what there is, without importing any of it."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from gatework.registry import list_mixers, mixer_entry
from gatework.tasks import list_tasks


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", nargs="?", choices=["mixers", "tasks"], help="list only these")


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Print the tables."""
    if arguments.kind in (None, "mixers"):
        entries = [mixer_entry(name) for name in list_mixers()]
        name_width = max(len(entry.name) for entry in entries)
        summary_width = max(len(entry.summary) for entry in entries)
        print("mixers")
        for entry in entries:
            print(f"  {entry.name:{name_width}}  {entry.summary:{summary_width}}  {entry.source}")
    if arguments.kind in (None, "tasks"):
        print("tasks")
        for name in list_tasks():
            print(f"  {name}")
    return 0
