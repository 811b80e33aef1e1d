"""The page about the recall gap does what it says: its commands and its code are executed in order."""

from __future__ import annotations

import json
import re

import pytest

from gatework.cli import evaluate
from tests.docs.test_tutorials import FENCE, ROOT, execute

PAGE = ROOT / "docs" / "ar_slices.md"
#: Commands that need what a reader has, a model of the hub or a folder of notes.
SHOWN = {"text"}


def test_every_option_is_explained():
    from gatework.cli.parser import Parser

    parser = Parser()
    evaluate.add_arguments(parser, [])
    arguments = parser.parse_args(["ar-slices", "MODEL"])["ar-slices"]
    options = {name for name in vars(arguments) if name not in ("model", "text", "plugin")}
    assert options == set(re.findall(r"`--(\w+)`", PAGE.read_text())) - {"suffix"}


@pytest.mark.slow
def test_the_page_works(tmp_path):
    text = PAGE.read_text()
    blocks = FENCE.findall(text)
    assert text.count("```") == 2 * len(blocks)
    assert [language for language, _, _ in blocks] == ["bash", "bash", "text", "python", "python"]
    outputs = [execute(language, block, tmp_path) for language, _, block in blocks if language not in SHOWN]
    record = json.loads((tmp_path / "slices.json").read_text())
    assert f"{record['gap']:+.4f}" in outputs[1]
    assert 0.04 < record["ar_share"] < 0.09
    assert "AR hits, at most" in outputs[2]
