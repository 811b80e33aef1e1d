"""The page about measuring attention: its code runs, and its lists are those of the program."""

from __future__ import annotations

import re
from pathlib import Path

from gatework.bench.attention.families import FAMILIES
from gatework.bench.attention.gate import TOLERANCES
from tests.warm_python import run_python

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text()


def test_its_code_runs(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    done = run_python(["-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 measured" in done.stdout
    assert [*tmp_path.iterdir()] == []


def test_it_names_every_family_and_tolerance():
    assert [name for name in FAMILIES if f"`{name}`" not in TEXT] == []
    for dtype, tolerance in TOLERANCES.items():
        assert f"{tolerance:.0e}".replace("e-0", "e-") in TEXT, dtype
