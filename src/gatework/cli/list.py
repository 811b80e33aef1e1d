"""``gatework list``: what there is, without importing any of it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.registry import MixerEntry, list_mixers, mixer_entry
from gatework.tasks import list_tasks

_LINE = 120
_LEGEND = "L: tokens read, d: channels; other names are options. State is counted in elements per sequence."


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    parser.add_argument("kind", nargs="?", choices=["mixers", "tasks"], help="list only these")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Print the tables."""
    entries = [mixer_entry(name) for name in list_mixers()]
    if arguments.json:
        found = {"mixers": [_record(entry) for entry in entries], "tasks": list_tasks()}
        print(json.dumps({kind: found[kind] for kind in found if arguments.kind in (None, kind)}, indent=1))
        return 0
    if arguments.kind in (None, "mixers"):
        print(f"mixers ({_LEGEND})")
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            print(f"  {entry.name:{width}}  {entry.summary}".rstrip())
            if facts := _facts(entry):
                indent = " " * (width + 4)
                print(textwrap.fill(facts, _LINE, initial_indent=indent, subsequent_indent=indent))
    if arguments.kind in (None, "tasks"):
        print("tasks")
        for name in list_tasks():
            print(f"  {name}")
    return 0


def _facts(entry: MixerEntry) -> str:
    """What decoding carries, how the cost grows, and where the mixer comes from, as far as that is known."""
    facts = (("state ", entry.state), ("cost ", entry.cost), ("", entry.source))
    return " | ".join(f"{label}{text}" for label, text in facts if text)


def _record(entry: MixerEntry) -> dict[str, str]:
    """An entry as JSON: everything but the class, which may be an object of the caller's."""
    return {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "target"}
