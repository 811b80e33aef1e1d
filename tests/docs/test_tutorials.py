"""The tutorials do what they say: their code is executed, in the order of the page, in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Languages of blocks that are shown, not executed.
SHOWN = {"toml"}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, file name or nothing, and text of every fenced block."""
    return FENCE.findall(page.read_text())


def execute(language: str, text: str, folder: Path) -> str:
    """Run a block as a reader would who has gatework and pytest on the path."""
    command = {"bash": ["bash", "-euc", text], "python": [sys.executable, "-c", text]}[language]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_there_are_tutorials_and_they_have_code():
    assert {page.name for page in TUTORIALS} >= {"add_a_mixer.md", "add_a_task.md", "add_a_token_task.md"}
    for page in TUTORIALS:
        languages = {language for language, name, _ in blocks(page) if not name}
        assert languages >= {"python", "bash"}
        # Every fence is one that the pattern understands: none is skipped by mistake.
        assert page.read_text().count("```") == 2 * len(blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_works(page, tmp_path):
    outputs = []
    for language, name, text in blocks(page):
        if name:
            (tmp_path / name).write_text(text)
        elif language not in SHOWN:
            outputs.append(execute(language, text, tmp_path))
    assert re.search(r"[34] passed", outputs[0])
    (study,) = (path.parent for path in (tmp_path / "runs").glob("*/study.json"))
    assert "0 failed, 0 missing" in outputs[1]
    assert (study / "report.html").stat().st_size > 100_000
    assert "num_seeds" in outputs[2]  # the table of cells
