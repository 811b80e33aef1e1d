"""Pages are made of templates, in which every value is text."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import gatework
from gatework.page.frame import assemble_page, fill_template

PACKAGE = Path(gatework.__file__).parent
TEMPLATES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.html"))
EVIL = "<b>&\"'</b></script><!-- {{ 7 * 7 }} {% raw %} ${x}"
#: What templates write as it is: their own style and scripts, and the HTML that sections of a study return.
SAFE = {"policy", "style", "plotly", "script", "section"}


class Parts(HTMLParser):
    """A page in parts: its tags with the names of their attributes, and its texts with their values."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        raw = self.tags[-1:] and self.tags[-1][0] in ("script", "style") and self.cdata_elem
        (self.scripts if raw else self.texts).append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def page_of(text: str, number: float = 1.5) -> str:
    words = {"heading": text, "answer": [text, text], "counts": [("finished", 2, text)]}
    words |= {"protocol": {text: text}, "notes": [text], "command": text, "masks": [(text, text, text)]}
    data = {"a": [text, "\u2028", None], "b": number}
    return assemble_page(
        "bench/page/bench.html",
        words,
        title=text,
        eyebrow=text,
        data=data,
        scripts=["bench/page/bench.js"],
        series="engines",
    )


def test_every_value_is_text():
    evil, tame = Parts(page_of(EVIL)), Parts(page_of("tame"))
    assert evil.tags == tame.tags
    assert evil.comments == []
    assert sum(text.count("tame") for text in tame.texts) == 13
    assert sum(text.count(EVIL) for text in evil.texts) == 13


def test_json_in_a_script_closes_nothing():
    embedded = Parts(page_of(EVIL)).scripts[1]  # after the style
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {"a": [EVIL, "\u2028", None], "b": 1.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        page_of("", float("nan"))


def test_a_word_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'plural' is undefined"):
        fill_template("study/page/candidates.html", {"heads": [], "rows": []})


def test_only_what_is_ours_is_written_as_it_is():
    assert "page/assets/shell.html" in TEMPLATES
    marked = set()
    for name in TEMPLATES:
        text = files("gatework").joinpath(name).read_text(encoding="utf-8")
        marked |= set(re.findall(r"(\w+) *\| *safe\b", text))
        assert len(re.findall(r"\bsafe\b", text)) == len(re.findall(r"\w+\|safe \}\}", text)), name
        assert "autoescape" not in text, name
    assert marked == SAFE


def test_html_is_written_in_templates_only():
    """No module escapes by hand or fills its own templates: it would be forgotten once."""
    problems = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                if isinstance(node, ast.ImportFrom)
                else {alias.name for alias in node.names}
                if isinstance(node, ast.Import)
                else set()
            )
            if names & {"html", "html.escape", "string.Template", "markupsafe", "jinja2.Markup"}:
                problems.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
            if names & {"jinja2"} and path != PACKAGE / "page" / "frame.py":
                problems.append(f"{path.relative_to(PACKAGE)}:{node.lineno} makes templates of its own")
    assert not problems
