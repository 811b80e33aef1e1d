"""Equations as MathML, made when the site is built: browsers draw it themselves, and no page loads a script.

A Sphinx extension. What cannot be converted is a warning, with which ``make docs`` fails: an unknown command
would stand on the page as it was written.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import latex2mathml.converter
from docutils import nodes
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
_WITH_SCRIPTS = {"msub", "msup", "msubsup", "munder", "mover", "munderover"}
_PARTS = {**dict.fromkeys(_WITH_SCRIPTS, 2), "msubsup": 3, "munderover": 3, "mfrac": 2, "mroot": 2}
_THIN = "0.17em"


def to_mathml(latex: str, *, display: bool) -> str:
    """Return an equation as a ``<math>`` element.

    Raises:
        ValueError: If it is no LaTeX, or has a command that the converter does not know.
    """
    text = " ".join(latex.split())
    text = re.sub(r"\\text\{[^{}]*\}", lambda found: found.group().replace(r"\_", "_"), text)
    try:
        made = latex2mathml.converter.convert(text, display="block" if display else "inline")
    except Exception as error:  # the converter has many, IndexError among them
        raise ValueError(f"{type(error).__name__}: {error}") from error
    element = ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", made, count=1))
    for part in element.iter():
        if part.text and (left := re.search(r"\\[A-Za-z]+|\\.", part.text)):
            raise ValueError(f"{left.group()} is not known")
        if len(part) != _PARTS.get(part.tag, len(part)):
            raise ValueError(f"{part.tag} has {len(part)} parts instead of {_PARTS[part.tag]}")
    _set_spaces(element)
    return ElementTree.tostring(element, encoding="unicode")


def _set_spaces(element: ElementTree.Element) -> None:
    """Give names of functions and slashes the room that TeX does; browsers give them that of other signs."""
    parts = [*element]
    for number, part in enumerate(parts):
        name = part
        while name.tag in _WITH_SCRIPTS:
            name = name[0]
        is_name = name.tag in ("mi", "mo") and re.fullmatch(r"[A-Za-z]{2,}", name.text or "")
        if element.tag not in _WITH_SCRIPTS and is_name and "mathvariant" not in name.attrib:
            name.tag = "mo"
            before, after = parts[number - 1] if number else None, (parts[number + 1 :] or [None])[0]
            name.set("lspace", _THIN if before is not None and before.tag != "mo" else "0")
            opens = after is None or (after.text or "") in (*"([{,)]}",)
            name.set("rspace", "0" if opens else _THIN)
        if part.tag == "mo" and part.text == "/":
            part.attrib |= {"lspace": "0", "rspace": "0"}
        _set_spaces(part)


def visit_math(translator, node: nodes.math) -> None:
    """Write an equation in a line."""
    translator.body.append(_converted(node, display=False))
    raise nodes.SkipNode


def visit_math_block(translator, node: nodes.math_block) -> None:
    """Write an equation of its own, in a box that scrolls if it is wider than the page."""
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    anchor = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    made = _converted(node, display=True)
    translator.body.append(f'<div class="math"{anchor} tabindex="0">{number}{made}</div>\n')
    raise nodes.SkipNode


def _converted(node: nodes.Element, *, display: bool) -> str:
    try:
        return to_mathml(node.astext(), display=display)
    except ValueError as error:
        LOGGER.warning("equation cannot be converted: %s in %r", error, node.astext(), location=node)
        return ""


def setup(app) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
