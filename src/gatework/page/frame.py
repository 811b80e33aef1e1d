"""The frame that all pages share: style, scripts, policy, and parts put together to one document.

A page is complete in itself and loads nothing: its content security policy allows no network, and runs only
the scripts whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from gatework._version import __version__
from gatework.files import write_atomically

_SHARED_SCRIPTS = ("marks.js", "legend.js", "view.js", "table.js")


def write_page(path: Path, page: str) -> None:
    """Write a page atomically.

    Raises:
        FileError: If it cannot be written.
    """
    # JSON can hold half of a surrogate pair, which UTF-8 cannot: it becomes a question mark.
    write_atomically(path, page.encode(errors="replace").decode())


def assemble_page(
    package: str,
    *,
    title: str,
    eyebrow: str,
    header: str,
    figures: str,
    data: Mapping[str, Any],
    scripts: Sequence[str],
    series: str,
    table: tuple[str, str, str] | None = None,
    sections: Sequence[str] = (),
) -> str:
    """Put a page together: the frame that all pages share, and one page's own parts.

    Args:
        package: Package whose folder ``page`` holds the page's own parts, such as ``"gatework.study"``.
        title: Title of the document, as text.
        eyebrow: The line above its heading, as text.
        header: HTML above the figures.
        figures: HTML of the figures.
        data: The one JSON value that the scripts draw; its ``series`` are what the legend lists.
        scripts: The page's own scripts, after those that all pages share.
        series: What the series are, in the plural, such as ``"engines"``.
        table: Arguments of :func:`table_html`, for the table below the figures; None if it is among them.
        sections: Texts of scripts that follow, each with names of its own.
    """
    # Imported here: it is large, and only a page needs it.
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    parts = [*map(_shared_file, _SHARED_SCRIPTS), *(_own_file(package, name) for name in scripts)]
    # What is declared in a block is not seen outside of it, in strict mode, which the first script sets.
    script = "\n".join([*parts, *(f"{{\n{text}\n}}" for text in sections)])
    texts = {"title": title, "eyebrow": eyebrow, "version": __version__}
    texts |= {"series": series, "Series": series.capitalize()}
    return Template(_shared_file("shell.html")).substitute(
        {name: escape(text) for name, text in texts.items()},
        policy=_policy(plotly, script),
        style=_style(),
        header=header,
        figures=figures if table is None else f"{figures}\n{table_html(*table)}",
        data=embed_json(data),
        plotly=plotly,
        script=script,
    )


def fill_template(package: str, name: str, words: Mapping[str, str]) -> str:
    """Return a part of a page, from the folder ``page`` of ``package``, with its words filled in as HTML."""
    return Template(_own_file(package, name)).substitute(words)


def table_html(title: str, caption: str, hint: str) -> str:
    """Return the place of the page's one table, which ``table.js`` fills.

    Args:
        title: Its heading, as text.
        caption: What it shows, as text.
        hint: What stands in its empty filter, as text.
    """
    words = {"title": title, "caption": caption, "hint": hint}
    return Template(_shared_file("table.html")).substitute({name: escape(words[name]) for name in words})


def list_html(items: Iterable[str]) -> str:
    """Write texts as the items of a list."""
    return "".join(f"<li>{escape(item)}</li>" for item in items)


def protocol_html(lines: Mapping[str, str]) -> str:
    """Write what was held equal, chosen and reported, a term and a sentence each."""
    return "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in lines.items())


def embed_json(value: Any) -> str:
    """Write JSON that is inert inside a ``<script>`` element: no ``<``, ``>`` or ``&`` remains in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shared_file(name: str) -> str:
    return (files("gatework.page") / "assets" / name).read_text(encoding="utf-8")


def _own_file(package: str, name: str) -> str:
    return (files(package) / "page" / name).read_text(encoding="utf-8")


def _style() -> str:
    """The style sheet: dark if the reader chose it, or if the system is dark and the reader chose nothing."""
    dark = _shared_file("dark.css")
    rules = (
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{\n{dark}}} }}\n'
        f':root[data-theme="dark"] {{\n{dark}}}'
    )
    return _shared_file("report.css").replace("/*dark*/", rules)


def _policy(*scripts: str) -> str:
    """Allow no network at all, and no script but the given ones (plotly sets styles from its script)."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )
