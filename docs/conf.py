"""The site: Markdown pages, and the API reference read from the docstrings. Built by ``make docs``."""

import re
import sys
from pathlib import Path

from sphinx.errors import ExtensionError

from gatework import __version__

sys.path.insert(0, str(Path(__file__).parent))  # for the extension `equations`, beside this file

project = "gatework"
author = "The gatework authors"
project_copyright = "The gatework authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "equations"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
# Classes of two modules may have one name; short names in signatures then link to either.
suppress_warnings = ["ref.python"]

html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme = "furo"
html_title = f"gatework {release}"

# Objects are described where they are defined, in our own words only: not again where a package re-exports
# them, and not in those of the base class when a method says nothing of its own.
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True

SOURCES = Path(__file__).parents[1] / "src"


def public_modules():
    """Dotted names of all modules, the command line's and private ones excepted."""
    for path in sorted((SOURCES / "gatework").rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        name = parts[:-1] if parts[-1] == "__init__" else parts
        if len(name) > 1 and name[1] != "cli" and not any(part.startswith("_") for part in name):
            yield ".".join(name)


def add_modules(app, docname, source):
    """End the page ``api`` with every module there is, so that none can be forgotten."""
    if docname == "api":
        for name in public_modules():
            source[0] += f"\n## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"


def check_standalone(app, exception):
    """Refuse a site of which a page loads something from the network: it must be whole without one."""
    if exception is not None:
        return
    loads = re.compile(
        r'<(?:script|link|img|iframe|source|embed|object)\b[^>]*\s(?:src|href|data)="(?:https?:)?//'
    )
    foreign = re.compile(r"""url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""")
    for suffix, pattern in ((".html", loads), (".css", foreign)):
        for path in sorted(Path(app.outdir).rglob(f"*{suffix}")):
            if found := pattern.search(path.read_text(encoding="utf-8")):
                raise ExtensionError(f"{path} loads something from the network: {found.group()}...")


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", add_modules)
    app.connect("build-finished", check_standalone)
