"""Our objects equal the authors' code: outputs and gradients of every golden file.

``GATEWORK_GOLDEN`` may name another folder with an ``index.json`` and files (or links) below it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from tests.golden import (
    gna_adapters,
    halonet_adapters,
    longca_bench_adapters,
    seer_attention_adapters,
    sigmoid_attention_adapters,
    zoology_adapters,
)
from tests.golden.case import Adapter, Case, relative_error

FOLDER = Path(os.environ.get("GATEWORK_GOLDEN", Path(__file__).parent))
INDEX = json.loads((FOLDER / "index.json").read_text())
ADAPTERS: dict[str, Adapter] = {
    **gna_adapters.ADAPTERS,
    **halonet_adapters.ADAPTERS,
    **zoology_adapters.ADAPTERS,
    **longca_bench_adapters.ADAPTERS,
    **seer_attention_adapters.ADAPTERS,
    **sigmoid_attention_adapters.ADAPTERS,
}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("file", sorted(INDEX))
def test_equals_the_authors(file: str, precision: str) -> None:
    entry = INDEX[file]
    assert entry["kind"] in ADAPTERS, f"no adapter for kind {entry['kind']!r}"
    case = Case(FOLDER / file, getattr(torch, precision))
    outputs = ADAPTERS[entry["kind"]](case)
    bounds = entry.get("tensors", {})

    stored = case.part("out")
    assert stored.keys() <= outputs.keys(), f"outputs not given: {sorted(stored.keys() - outputs.keys())}"
    for name, expected in stored.items():
        allowed = bounds.get(f"out/{name}", entry[precision])
        allowed = allowed[precision] if precision in allowed else allowed["out"]
        check(f"out/{name}", outputs[name], expected, allowed)
    if not case.part("grad"):
        return
    case.backward(outputs)
    for name in case.part("grad"):
        allowed = bounds.get(f"grad/{name}", entry[precision])
        allowed = allowed[precision] if precision in allowed else allowed["grad"]
        check(f"grad/{name}", *case.gradient(name), allowed)


def check(name: str, ours: torch.Tensor | None, expected: torch.Tensor, allowed: float) -> None:
    assert ours is not None, f"{name}: no gradient reached it"
    error = relative_error(ours, expected)
    assert math.isfinite(error), f"{name}: shape or exact values differ, {tuple(ours.shape)}"
    assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.0e}"


def test_own_folder_is_indexed() -> None:
    own = Path(__file__).parent
    files = {str(path.relative_to(own)) for path in own.rglob("*.safetensors")}
    assert files == set(json.loads((own / "index.json").read_text()))
