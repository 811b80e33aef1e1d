"""Our objects equal the authors' code: outputs and gradients of every golden file.

``GATEWORK_GOLDEN`` may name another folder, with files (or links) below it and one ``index.json`` at its root
that lists all, or one in each folder. Systems that we do not have are skipped there, by name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tests.golden import systems
from tests.golden.case import Case
from tests.golden.compare import compare

FOLDER = Path(os.environ.get("GATEWORK_GOLDEN", systems.OWN))
INDEX = systems.read_index(FOLDER)
ADAPTERS, NOT_HERE = systems.load_adapters()


def skip_what_is_not_ours(kind: str) -> None:
    """A system without an adapter, or a kind that its adapter says is missing: by name, and nothing else."""
    system = kind.partition("/")[0]
    if system not in systems.slugs():
        pytest.skip(f"the system {system!r} has no adapter (kind {kind!r})")
    if kind in NOT_HERE:
        pytest.skip(f"{kind!r} is not here: {NOT_HERE[kind]}")
    assert kind in ADAPTERS, f"no adapter for kind {kind!r}"


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("file", sorted(INDEX))
def test_equals_the_authors(file: str, precision: str) -> None:
    entry = INDEX[file]
    skip_what_is_not_ours(entry["kind"])
    case = Case(FOLDER / file, getattr(torch, precision))
    compare(case, ADAPTERS[entry["kind"]], lambda name: systems.tolerance(file, entry, name, precision))


def test_every_file_of_ours_is_a_case_and_every_case_a_file() -> None:
    files = {path.relative_to(systems.OWN).as_posix() for path in systems.OWN.rglob("*.safetensors")}
    assert files == systems.OWN_INDEX.keys()


def test_every_case_of_ours_has_an_adapter() -> None:
    kinds = {entry["kind"] for entry in systems.OWN_INDEX.values()}
    assert kinds <= ADAPTERS.keys()
    assert {file.partition("/")[0] for file in systems.OWN_INDEX} == set(systems.slugs())


@pytest.mark.parametrize("layout", ["one index", "one per folder"])
def test_either_layout_of_a_folder_is_read(tmp_path: Path, layout: str) -> None:
    index = {"a/x.safetensors": {"kind": "a/X"}, "b/y.safetensors": {"kind": "b/Y"}}
    if layout == "one index":
        (tmp_path / "index.json").write_text(json.dumps(index))
    else:
        for file, entry in index.items():
            folder, name = file.split("/")
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "index.json").write_text(json.dumps({name: entry}))
    assert systems.read_index(tmp_path) == index


def test_a_folder_without_an_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        systems.read_index(tmp_path)


def test_another_index_cannot_loosen_a_tolerance() -> None:
    file, ours = next(iter(systems.OWN_INDEX.items()))
    strict = {"out": 1e-9, "grad": 1e-9}
    for bound, wanted in ((1e-2, ours["float64"]["out"]), (1e-9, 1e-9)):
        entry = ours | {"float64": strict | {"out": bound}, "tensors": {"out/y": {"float64": bound}}}
        assert systems.tolerance(file, entry, "out/y", "float64") == wanted
    with pytest.raises(AssertionError, match="a tolerance of 1"):
        systems.tolerance("a/x.safetensors", {"float64": {"out": 1.0}}, "out/y", "float64")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("unheard_of/Net", "'unheard_of' has no adapter"), ("halonet/ByobNet", "'halonet/ByobNet' is not here")],
)
def test_what_is_not_ours_is_skipped_by_name(kind: str, reason: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=reason):
        skip_what_is_not_ours(kind)


def test_an_unknown_kind_of_a_system_of_ours_fails() -> None:
    with pytest.raises(AssertionError, match="no adapter for kind 'gna/Unheard'"):
        skip_what_is_not_ours("gna/Unheard")
