"""The pages of the mixers: their code is executed, their pictures and tables are made again."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from gatework.registry.mixers import _MIXERS
from tests.warm_python import run_python

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "mixers"
PAGES = sorted(FOLDER.glob("*.md"))
FAMILIES = [page for page in PAGES if page.stem != "index"]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = ["Cost", "State", "When to use it, and when not", "Options worth knowing", "Code"]
#: Mixers of this library; the tests of plugins may add others.
OWN = {name for name, entry in _MIXERS.items() if str(entry.target).startswith("gatework.")}


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("mixer_pictures", DOCS / "mixer_pictures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_code_of_the_pages_works(tmp_path):
    programs = []
    for page in PAGES:
        blocks = FENCE.findall(page.read_text())
        assert page.read_text().count("```") == 2 * len(blocks)  # none is skipped by mistake
        code = "\n".join(text for language, text in blocks if language == "python")
        assert code, page
        programs.append((page.name, code))
    program = (
        f"for page, code in {programs!r}:\n    exec(compile(code, page, 'exec'), {{'__name__': page}})\n"
    )
    done = run_python(["-W", "error", "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_pictures_and_tables_are_up_to_date(pictures):
    files = pictures.files()
    stale = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
    assert not stale, f"run docs/mixer_pictures.py: {stale}"
    assert set(FOLDER.iterdir()) == files.keys()


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_every_page_has_all_parts(page):
    text = page.read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] in ("The equation", "The equations")
    assert set(SECTIONS) <= set(headings)
    assert "$$\n" in text
    assert f"({page.stem}.svg)" in text


def test_every_mixer_has_its_page(pictures):
    tabled = [name for page in pictures.STATES.values() for name in {name for name, _ in page}]
    assert sorted(tabled) == sorted(OWN)
    assert sorted(pictures.STATES) == sorted(page.stem for page in FAMILIES)
    for page in FAMILIES:
        text = page.read_text().partition("<!-- states")[0]
        assert all(f"`{name}`" in text for name, _ in pictures.STATES[page.stem])


def test_cells_cover_every_share_once(pictures):
    shares = [[0.0, 0.5, 0.5, 1.0], [1.0, 1.0, 0.0, 0.25]]
    drawn = pictures.cells(pictures.Grid("", shares, cell=1), 0, 0)
    found = [[0.0] * 4 for _ in shares]
    for opacity, path in re.findall(r'fill-opacity="([\d.]+)" d="(.*?)"', drawn):
        for x, y, wide in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            for place in range(int(x), int(x) + int(wide)):
                assert found[int(y)][place] == 0
                found[int(y)][place] = float(opacity)
    assert found == shares
