"""What is compared: every candidate with its definition, and what is known of it."""

from __future__ import annotations

from gatework.page.frame import fill_template
from gatework.page.quantities import capitalised
from gatework.study.sections.section import Section
from gatework.tasks.candidates import definition_text


class CandidatesSection(Section):
    """A row per candidate: symbol, label, definition, and what the task says of that."""

    name = "candidates"

    def html(self) -> str:
        """Return the table."""
        summary, declared = self.summary, self.summary.declared
        about = declared.about or (lambda definition: "")
        definitions = [(name, summary.definitions[name]) for name in summary.candidates]
        rows = [(name, definition_text(definition), about(definition)) for name, definition in definitions]
        heads = [capitalised(declared.candidates.name), capitalised(declared.definition)]
        is_explained = any(about for _, _, about in rows)
        words = {
            "plural": declared.candidates.plural,
            "heads": [*heads, "What they are"] if is_explained else heads,
            "rows": rows,
            "is_explained": is_explained,
        }
        return fill_template("study/page/candidates.html", words)
