"""The page about where engines have run says what the table in the library says."""

from __future__ import annotations

import re
from pathlib import Path

from gatework.ops.engines import OF_TORCH, TRIED

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "engines.md"


def rows() -> list[list[str]]:
    _, _, rest = PAGE.read_text().partition("<!-- tried:")
    lines = rest[rest.index("|---") :].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def refuses_gpus(engine: str) -> bool:
    return engine.startswith("blocked") or engine.endswith("-numba")


def test_the_page_is_the_table():
    expected = [
        [
            f"`{operator}`",
            f"`{engine}`",
            *(tried.get(kind, "") for kind in ("cpu", "interpreter", "cubin")),
            tried.get("cuda", "" if refuses_gpus(engine) else "no"),
        ]
        for operator, engines in TRIED.items()
        for engine, tried in engines.items()
    ]
    assert rows() == expected


def test_no_gpu_is_claimed_as_long_as_none_was_tried():
    tried_on_gpus = any("cuda" in tried for engines in TRIED.values() for tried in engines.values())
    assert ("No engine has run on a GPU so far" in PAGE.read_text()) != tried_on_gpus


def test_what_others_pages_say_of_the_default_on_a_gpu():
    by_name = {engine for engines in TRIED.values() for engine in engines} - OF_TORCH
    by_name = {engine for engine in by_name if not refuses_gpus(engine)}
    assert by_name == {"flex", "triton", "fla", "mamba_ssm", "natten"}
    for engine in by_name:
        assert re.search(rf'"{engine}"', PAGE.read_text()), engine
    for path in (ROOT / "docs").rglob("*.md"):
        text = " ".join(path.read_text().split())
        assert "NATTEN for CUDA tensors where it is installed" not in text, path
        assert "On CUDA, `flex`" not in text, path


def test_the_commands_are_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", PAGE.read_text()):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"(?:benchmarks|tests)/[\w/]+\.py|tests/gpu", PAGE.read_text()):
        assert (ROOT / path).exists(), path
