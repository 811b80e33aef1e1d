"""What is compared: every candidate with its definition, and what is known of it."""

from __future__ import annotations

from html import escape

from gatework.page.frame import fill_template
from gatework.page.quantities import capitalised
from gatework.study.sections.section import Section
from gatework.study.summary import Summary
from gatework.tasks.candidates import definition_text


class CandidatesSection(Section):
    """A row per candidate: symbol, label, definition, and what the task says of that."""

    name = "candidates"

    def html(self) -> str:
        """Return the table."""
        summary, declared = self.summary, self.summary.declared
        about = {
            name: "" if declared.about is None else declared.about(definition)
            for name, definition in summary.definitions.items()
        }
        heads = [capitalised(declared.candidates.name), capitalised(declared.definition)]
        heads += ["What they are"] * any(about.values())
        words = {
            "label": escape(f"Table of {declared.candidates.plural}"),
            "heads": "".join(f'<th scope="col">{escape(head)}</th>' for head in heads),
            "rows": "".join(self._row(name, about[name], any(about.values())) for name in summary.candidates),
        }
        return fill_template("gatework.study", "candidates.html", words)

    def _row(self, name: str, about: str, has_about: bool) -> str:
        cells = [f"<code>{escape(definition_text(self.summary.definitions[name]))}</code>"]
        cells += [escape(about)] * has_about
        return (
            f'<tr><th scope="row">{glyph_html(self.summary, name)}<span>{escape(name)}</span></th>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )


def glyph_html(summary: Summary, candidate: str) -> str:
    """Leave room for the symbol and colour that the script gives this candidate everywhere."""
    return f'<span class="glyph" data-series="{summary.candidates.index(candidate)}"></span>'
