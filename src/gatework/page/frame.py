"""The frame that all pages share: templates, style, scripts, policy, put together to one document.

A page is complete in itself and loads nothing: its content security policy allows no network, and runs only
the scripts whose hashes it names. Its HTML is in templates, of Jinja, which write every value as text; the
few that are HTML or scripts of ours are marked there as ``safe``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

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
    template: str,
    words: Mapping[str, Any],
    *,
    title: str,
    eyebrow: str,
    data: Mapping[str, Any],
    scripts: Sequence[str],
    series: str,
    sections: Sequence[str] = (),
) -> str:
    """Put a page together: the frame that all pages share, and one page's own parts.

    Args:
        template: The page's own template, which extends ``page/assets/shell.html``.
        words: What that template needs, and the head of every page: ``heading``, the ``answer`` in sentences,
            ``counts`` (triples of a class or None, a number, and what there are so many of) and ``protocol``.
        title: Title of the document.
        eyebrow: The line above its heading.
        data: The one JSON value that the scripts draw; its ``series`` are what the legend lists.
        scripts: The page's own scripts, after those that all pages share.
        series: What the series are, in the plural, such as ``"engines"``.
        sections: Texts of scripts that follow, each with names of its own.

    Templates and scripts are named by their paths in the package, such as ``"study/page/axes.js"``.
    """
    # Imported here: it is large, and only a page needs it.
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    names = [*(f"page/assets/{name}" for name in _SHARED_SCRIPTS), *scripts]
    # What is declared in a block is not seen outside of it, in strict mode, which the first script sets.
    script = "\n".join([*map(_read, names), *(f"{{\n{text}\n}}" for text in sections)])
    frame = {
        "title": title,
        "eyebrow": eyebrow,
        "version": __version__,
        "series": series,
        "policy": _policy(plotly, script),
        "style": _style(),
        "data": data,
        "plotly": plotly,
        "script": script,
    }
    return fill_template(template, {**words, **frame})


def fill_template(name: str, words: Mapping[str, Any]) -> str:
    """Return a page or a part of one, as HTML.

    Args:
        name: Path of the template in the package, such as ``"study/page/figure.html"``.
        words: What it needs. Every value becomes text.
    """
    return _environment().get_template(name).render(words)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gatework", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The filter that writes JSON for a <script> element leaves no "<", ">" or "&" in it.
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment


def _read(name: str) -> str:
    """The text of a file of the package."""
    return files("gatework").joinpath(*name.split("/")).read_text(encoding="utf-8")


def _style() -> str:
    """The style sheet: dark if the reader chose it, or if the system is dark and the reader chose nothing."""
    dark = _read("page/assets/dark.css")
    rules = (
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{\n{dark}}} }}\n'
        f':root[data-theme="dark"] {{\n{dark}}}'
    )
    return _read("page/assets/report.css").replace("/*dark*/", rules)


def _policy(*scripts: str) -> str:
    """Allow no network at all, and no script but the given ones (plotly sets styles from its script)."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )
