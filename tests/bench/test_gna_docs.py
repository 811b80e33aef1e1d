"""The page about the simulator: its code and commands run, and its numbers are what they print."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from gatework.bench.gna import gna
from gatework.bench.gna.table import row_texts
from gatework.cli import main
from tests.warm_python import run_python

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "gna.md").read_text()
SHOWN = (
    "stride",
    "visited",
    "speedup",
    "end_to_end",
    "paper_end_to_end",
    "paper_measured",
    "end_to_end_partial",
    "paper_end_to_end_partial",
)
#: Some words of commands on the page, and numbers that stand there because these print them.
NUMBERS = {
    "--window 13": ["5.44×", "18.56×", "12.25×", "16x16"],
    "--window 8": ["1.78×", "4.00×"],
    "--stride [30,40,40]": ["1.55×", "1.44×", "2x16x8 / 2x8x8"],
}


def run(command: str, tmp_path: Path) -> int:
    program, *arguments = shlex.split(command, comments=True)
    assert program == "gatework"
    return main([*arguments, f"--output={tmp_path / 'out'}"])


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`(gatework bench gna --[^`]*)`", TEXT)
    return [line for block in blocks for line in block.splitlines()] + inline


def test_its_code_prints_what_its_comments_say(tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    done = run_python(["-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"print\(.*\)  # (.*)", program)
    assert len(expected) == 5
    assert done.stdout.splitlines()[:5] == expected
    assert "16x16" in done.stdout.splitlines()[-2]
    assert [*tmp_path.iterdir()] == []


def test_its_table_is_the_printed_one():
    lines = [line.strip("|").split("|") for line in TEXT.splitlines() if re.match(r"\|.*\d+/\d+ \|", line)]
    found = [[cell.strip() for cell in cells] for cells in lines]
    rows = gna().rows
    assert len(found) == len(rows) == 21
    before = [None, *(row["case"] for row in rows)]
    for cells, row, (last, case) in zip(found, rows, pairwise(before), strict=True):
        texts = row_texts(row)
        assert cells == ["" if last == case else case, *(texts[name] for name in SHOWN)]


def test_the_sentences_below_it_are_true(capsys, tmp_path):
    assert run("gatework bench gna --search", tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for number in ("within 0.015", "within 0.013", "87.8 % to 100 %"):
        assert number in TEXT
        assert number in shown
    assert "window 30x40x40: with tiles 4x8x8 / 2x8x8 (blackwell) the smallest perfectly" in shown
    assert "block-sparse stride is 1x8x8 (2.40×" in shown
    assert f"{max(row['flattened_speedup'] for row in gna().rows):.2f}×" in TEXT


def test_it_has_commands():
    assert len(commands()) == 8
    assert all(any(words in command for command in commands()) for words in NUMBERS)


@pytest.mark.parametrize("command", [command for command in commands() if len(command.split()) > 4])
def test_its_commands_print_its_numbers(command, tmp_path, capsys):
    assert run(command, tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words, numbers in NUMBERS.items():
        if words in command:
            assert [number for number in numbers if number not in shown or number not in TEXT] == []
