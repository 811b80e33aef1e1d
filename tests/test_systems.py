"""Every system has a golden folder and a page, and the pages are alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatework.registry import list_models, model_entry
from tests.golden import systems
from tests.warm_python import run_python

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs" / "systems").glob("*.md"))
HEADINGS = ["What it is", "Equation", "Picture", "Variants", "Weights", "Recipe", "Results", "Limits"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def known_systems() -> set[str]:
    """The systems that the library has: those with golden numbers, and the families of the registry."""
    return set(systems.slugs()) | {model_entry(name).family for name in list_models()}


def system_of(page: Path) -> str:
    """``SLUG.md`` and ``SLUG_PART.md`` are pages of a system."""
    known = [slug for slug in known_systems() if f"{page.stem}_".startswith(f"{slug}_")]
    return max(known, key=len, default=page.stem)


def test_every_system_has_a_golden_folder_and_every_folder_is_a_system():
    folders = {path.parent.name for path in systems.OWN.glob("*/*.safetensors")}
    folders |= {path.parent.name for path in systems.OWN.glob("*/index.json")}
    assert known_systems() == folders == set(systems.slugs())


def test_every_system_has_a_page_and_every_page_a_system():
    assert known_systems() <= {page.stem for page in PAGES}
    assert {system_of(page) for page in PAGES} == known_systems()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_share_their_headings(page):
    text = CODE.sub("", page.read_text())
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    parts = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    empty = [name for name, part in zip(HEADINGS, parts, strict=True) if not part.strip()]
    # An equation has a formula, a picture is one that exists.
    assert not empty
    assert "$$" in parts[HEADINGS.index("Equation")]
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", parts[HEADINGS.index("Picture")])
    assert pictures
    assert all((page.parent / picture).is_file() for picture in pictures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_site_lists_the_page(page):
    assert f"\nsystems/{page.stem}\n" in (ROOT / "docs" / "index.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_the_page_works(page, tmp_path):
    program = "\n".join(block for language, block in CODE.findall(page.read_text()) if language == "python")
    assert program
    done = run_python(["-W", "error", "-c", program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
