"""What a section of a study's page is: words, data and a script, and what it adds to answers and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from gatework.page.frame import fill_template

if TYPE_CHECKING:
    from gatework.study.summary import Cell, Summary


class Section:
    """One section of the page of a study; every method may be left as it is.

    Attributes:
        name: Key of its data on the page, and of its script.
        script: Name of a script in ``gatework/study/page``, such as ``"curves.js"``; see :meth:`source`.
        table_columns: Those of :meth:`run_columns` that the table on the page shows, with their headings; the
            others are in its file and in the unfolded rows.

    Args:
        summary: The study with its results.
    """

    name: ClassVar[str]
    script: ClassVar[str | None] = None
    table_columns: ClassVar[Mapping[str, str]] = {}

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def html(self) -> str:
        """Return its place on the page; nothing if there is nothing to show.

        It is HTML and stands there as it is: what is text in it must be escaped, as :func:`figure_html` does.
        """
        return ""

    def data(self) -> Mapping[str, Any] | None:
        """Return what its script draws, as JSON: ``page.sections[name]``; None if it draws nothing."""
        return None

    @classmethod
    def source(cls) -> str:
        """Return its script: a call of ``section(name, {controls, draw})``, see ``page/study.js``."""
        if cls.script is None:
            return ""
        return (files("gatework.study") / "page" / cls.script).read_text(encoding="utf-8")

    def findings(self) -> Sequence[str]:
        """Return what it found, in sentences: they follow the answer."""
        return ()

    def caveats(self) -> Sequence[str]:
        """Return what limits the answer, in sentences."""
        return ()

    def protocol(self) -> Mapping[str, str]:
        """Return what the head of the page must define: terms and what they mean."""
        return {}

    def cell_lines(self, cell: Cell) -> Sequence[str]:
        """Return what it knows of a cell, in lines for the text that appears at a point."""
        return ()

    def cell_columns(self) -> Sequence[Mapping[str, Any]]:
        """Return columns of the table of cells: one mapping for each cell of the summary, or none at all."""
        return ()

    @staticmethod
    def run_columns(metrics: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Return columns of the table of runs, derived from the metrics of one."""
        return {}


def figure_html(
    key: str,
    title: str,
    caption: str,
    *,
    view: str | None = None,
    is_wide: bool = False,
    finding: str = "",
    notes: Iterable[str] = (),
) -> str:
    """Return the place of a figure, as HTML.

    Its script adds controls to the form ``KEY-controls`` and draws panels into ``KEY-panels``.

    Args:
        key: Name of the figure in the page.
        title: Its heading, as text.
        caption: What is drawn, as text.
        view: Name of its controls in a link to the page; ``key`` by default.
        is_wide: Whether at most two panels stand side by side.
        finding: What it shows in words, as text.
        notes: Sentences below it, as text.
    """
    words = {
        "key": key,
        "view": view or key,
        "title": title,
        "caption": caption,
        "is_wide": is_wide,
        "finding": finding,
        "notes": list(notes),
    }
    return fill_template("study/page/figure.html", words)
