"""Equations of the site: every one becomes MathML, and what cannot is refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml", reason="needs the extra `docs`")
pytest.importorskip("sphinx", reason="needs the extra `docs`")

DOCS = Path(__file__).resolve().parents[2] / "docs"
CODE = re.compile(r"^(`{3,}|:{3,})(?!\\{math)[^\n]*\n.*?^\\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\\\$])\$(?![\s$])([^$\n]*(?:\n[^$\n]+)*?)(?<!\s)\$(?!\d)")


@pytest.fixture(scope="module")
def equations():
    spec = importlib.util.spec_from_file_location("equations", DOCS / "equations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(page: str) -> list[tuple[str, bool]]:
    """The equations of a page, and whether each stands on its own."""
    text = CODE.sub("", page)
    blocks = [(found, True) for found in BLOCK.findall(text)]
    return blocks + [(found, False) for found in INLINE.findall(BLOCK.sub("", text))]


def test_every_equation_becomes_mathml(equations):
    pages = {path: written(path.read_text(encoding="utf-8")) for path in sorted(DOCS.rglob("*.md"))}
    problems, count = [], 0
    for path, found in pages.items():
        for latex, display in found:
            count += 1
            try:
                made = equations.to_mathml(latex, display=display)
            except ValueError as error:
                problems.append(f"{path.relative_to(DOCS)}: {error} in {latex!r}")
            else:
                assert made.startswith(f'<math display="{"block" if display else "inline"}"')
    assert not problems, "\n".join(problems)
    assert count > 200, "the equations were not found"


@pytest.mark.parametrize(
    ("latex", "message"),
    [
        (r"\unheard{x}", r"\unheard is not known"),
        (r"\frac{1}", "mfrac has 1 parts instead of 2"),
        (r"x_", "Error"),
        (r"\left( x", "Error"),
    ],
)
def test_what_cannot_be_converted_is_refused(equations, latex, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        equations.to_mathml(latex, display=True)


def test_names_and_slashes_have_the_room_that_tex_gives_them(equations):
    made = equations.to_mathml(r"-\log n = \operatorname{relu}(a / b) \max_i c", display=False)
    assert '<mo lspace="0" rspace="0.17em">log</mo>' in made
    assert '<mo lspace="0" rspace="0">relu</mo>' in made
    assert '<mo lspace="0" rspace="0">/</mo>' in made
    assert '<msub><mo lspace="0" rspace="0.17em">max</mo><mi>i</mi></msub>' in made
