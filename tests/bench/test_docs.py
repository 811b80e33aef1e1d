"""The page about measuring attention: its code runs, and its lists are those of the program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gatework.bench.attention.families import FAMILIES
from gatework.bench.attention.gate import TOLERANCES

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text()


def test_its_code_runs(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "12 measured" in done.stdout
    assert [*tmp_path.iterdir()] == []


def test_it_names_every_family_and_tolerance():
    assert [name for name in FAMILIES if f"`{name}`" not in TEXT] == []
    for dtype, tolerance in TOLERANCES.items():
        assert f"{tolerance:.0e}".replace("e-0", "e-") in TEXT, dtype
