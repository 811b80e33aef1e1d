"""The systems that have a golden folder, found by walking the folders: their adapters and cases.

A folder ``tests/golden/SLUG`` holds a system's files, ``index.json`` (file -> kind and tolerances), and
``adapter.py`` with two tables: ``ADAPTERS``, what makes our outputs of a case of a kind, and, where the
authors' cases have kinds that we have no code for, ``NOT_HERE``, why not.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.golden.case import Adapter

OWN = Path(__file__).parent
#: Errors are relative: a tolerance of more holds for nearly anything.
LOOSEST = 0.02

Entry = dict[str, Any]


def slugs() -> list[str]:
    """The systems that are ours: the folders with an adapter."""
    return sorted(path.parent.name for path in OWN.glob("*/adapter.py"))


def load_adapters() -> tuple[dict[str, Adapter], dict[str, str]]:
    """All adapters by kind, and the kinds that are not here with the reason."""
    adapters: dict[str, Adapter] = {}
    not_here: dict[str, str] = {}
    for slug in slugs():
        module = importlib.import_module(f"tests.golden.{slug}.adapter")
        missing = getattr(module, "NOT_HERE", {})
        for kind in (*module.ADAPTERS, *missing):
            assert kind.startswith(f"{slug}/"), f"{kind!r} in the folder of {slug}"
        assert not module.ADAPTERS.keys() & missing.keys()
        adapters |= module.ADAPTERS
        not_here |= missing
    return adapters, not_here


def read_index(folder: Path) -> dict[str, Entry]:
    """``SLUG/FILE`` -> kind and tolerances, of an ``index.json`` at the root or of one in each folder."""
    if (folder / "index.json").is_file():
        whole: dict[str, Entry] = json.loads((folder / "index.json").read_text())
        return whole
    parts = sorted(folder.glob("*/index.json"))
    if not parts:
        raise FileNotFoundError(f"no index.json in {folder} or in a folder of it")
    return {
        f"{part.parent.name}/{file}": entry
        for part in parts
        for file, entry in json.loads(part.read_text()).items()
    }


def tolerance(file: str, entry: Entry, name: str, precision: str) -> float:
    """How far ``out/NAME`` or ``grad/NAME`` may be off; a file of ours keeps our bound if it is tighter."""
    part, _, _ = name.partition("/")
    allowed = entry.get("tensors", {}).get(name, {}).get(precision, entry[precision][part])
    if file in OWN_INDEX and entry is not OWN_INDEX[file]:
        allowed = min(allowed, tolerance(file, OWN_INDEX[file], name, precision))
    assert 0 <= allowed <= LOOSEST, f"{file}, {name}: a tolerance of {allowed}"
    return float(allowed)


OWN_INDEX = read_index(OWN)
