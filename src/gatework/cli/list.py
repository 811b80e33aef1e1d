"""``gatework list``: what there is, without importing any of it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.page.quantities import format_count
from gatework.registry import (
    MixerEntry,
    ModelEntry,
    list_mixers,
    list_models,
    mixer_entry,
    model_entry,
)
from gatework.registry.models import Kind
from gatework.tasks import list_tasks

_LINE = 120
_LEGEND = "L: tokens read, d: channels; other names are options. State is counted in elements per sequence."
_WHAT = ("mixers", "models", "tasks")


def add_arguments(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", nargs="?", choices=_WHAT, help="list only these")
    parser.add_argument("--kind", choices=get_args(Kind), default=None, help="list only models of this kind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """Print the tables."""
    what = arguments.what
    if arguments.kind is not None and what not in (None, "models"):
        raise ValueError(f"--kind is of models, and this lists {what}")
    what = "models" if arguments.kind is not None else what
    mixers = [mixer_entry(name) for name in list_mixers()]
    models = [model_entry(name) for name in list_models(arguments.kind)]
    if arguments.json:
        found = {
            "mixers": list(map(_record, mixers)),
            "models": list(map(_record, models)),
            "tasks": list_tasks(),
        }
        print(json.dumps({kind: found[kind] for kind in found if what in (None, kind)}, indent=1))
        return 0
    if what in (None, "mixers"):
        print(f"mixers ({_LEGEND})")
        _print_table({entry.name: (entry.summary, _facts(entry)) for entry in mixers})
    if what in (None, "models"):
        print("models (made by gatework.create_model, which also knows those of timm)")
        _print_table({entry.name: (entry.summary, _model_facts(entry)) for entry in models})
    if what in (None, "tasks"):
        print("tasks")
        for name in list_tasks():
            print(f"  {name}")
    return 0


def _print_table(rows: dict[str, tuple[str, str]]) -> None:
    """Print a name with its summary on each line, and its facts below."""
    width = max(map(len, rows), default=0)
    for name, (summary, facts) in rows.items():
        print(f"  {name:{width}}  {summary}".rstrip())
        if facts:
            indent = " " * (width + 4)
            print(textwrap.fill(facts, _LINE, initial_indent=indent, subsequent_indent=indent))


def _facts(entry: MixerEntry) -> str:
    """What decoding carries, how the cost grows, and where the mixer comes from, as far as that is known."""
    facts = (("state ", entry.state), ("cost ", entry.cost), ("", entry.source))
    return " | ".join(f"{label}{text}" for label, text in facts if text)


def _model_facts(entry: ModelEntry) -> str:
    """Kind, family, size and source of a model, as far as they are known."""
    counts = (("parameters", entry.parameters), ("MACs", entry.macs))
    facts = [entry.kind, f"family {entry.family}"]
    facts += [f"{format_count(count)} {label}" for label, count in counts if count is not None]
    return " | ".join([*facts, *filter(None, (entry.paper, entry.license))])


def _record(entry: MixerEntry | ModelEntry) -> dict[str, Any]:
    """An entry as JSON: everything but the factory, which may be an object of the caller's."""
    hidden = ("target", "options")
    return {field.name: getattr(entry, field.name) for field in fields(entry) if field.name not in hidden}
