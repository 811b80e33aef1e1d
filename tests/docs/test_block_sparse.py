"""The page about learned blocks: its code is executed, as one program."""

import re
from pathlib import Path

from tests.warm_python import run_python

PAGE = Path(__file__).resolve().parents[2] / "docs" / "block_sparse.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_code_of_the_page_works(tmp_path):
    text = PAGE.read_text()
    blocks = FENCE.findall(text)
    assert len(blocks) >= 6
    assert {language for language, _ in blocks} == {"python", "bash"}
    assert text.count("```") == 2 * len(blocks)  # none is skipped by mistake
    program = "\n".join(block for language, block in blocks if language == "python")
    done = run_python(["-W", "error", "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
