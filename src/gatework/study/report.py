"""The report of a study: one self-contained page, ``report.html``, that opens anywhere without a network.

The page is a head with the answer, written here, and sections (:mod:`gatework.study.sections`). Their words
are HTML; figures and the table are drawn by the page's own scripts from one embedded JSON value. Nothing that
comes from a file reaches the page unescaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gatework.page.frame import assemble_page, fill_template, list_html, protocol_html, write_page
from gatework.page.quantities import FORMATS, format_quality, format_rate
from gatework.study.answer import Answer, Pick, answer, quality_unit
from gatework.study.companion import read_companion
from gatework.study.page_data import environments, page_data
from gatework.study.results import ResultStore
from gatework.study.sections import left_out, page_sections
from gatework.study.sections.candidates import glyph_html
from gatework.study.sections.section import Section
from gatework.study.spec import StudySpec
from gatework.study.summary import STATUSES, Choice, Summary, summarise
from gatework.tasks.declaration import ACTIVATIONS, PARAMETERS, TRAINING_FLOPS, Cost

REPORT_FILE = "report.html"
_PACKAGE = "gatework.study"
_SCRIPTS = ("axes.js", "study.js")
# What a study may hold equal, in a word; the others are called what they are.
_BUDGET_NAMES = {"flops": "compute", "seconds": "time"}


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a study, from its ``study.json`` and ``results``, and those of its companion.

    Args:
        directory: The study directory; the study may be running, or have lost runs.
        output: The page; by default ``report.html`` in ``directory``.

    Returns:
        The path of the page.

    Raises:
        FileError: If the directory holds no valid study, one of its files is broken, or the page cannot
            be written.
    """
    path = directory / REPORT_FILE if output is None else output
    write_page(path, render_page(read_summary(directory)))
    return path


def read_summary(directory: Path) -> Summary:
    """Read a study directory, and the study that accompanies it if there is one.

    Raises:
        FileError: If it holds no valid study, or one of its files is broken.
    """
    study = StudySpec.read(directory)
    companion = read_companion(directory, study.declaration.companion)
    return summarise(study, ResultStore(directory).read_all(), companion)


def render_page(summary: Summary) -> str:
    """Return the page of a study as one HTML document."""
    study, found = summary.study, answer(summary)
    kinds = page_sections(summary.declared)
    sections = [kind(summary) for kind in kinds]
    words = {
        "title": escape(study.title),
        "answer": _answer_html(found),
        "findings": _findings_html(found),
        "picks": _picks_html(summary, found.picks),
        "counts": _counts_html(summary),
        "protocol": protocol_html(_protocol(summary, sections)),
        "notes": list_html(_notes(summary)),
        "command": escape(study.command),
    }
    return assemble_page(
        _PACKAGE,
        title=study.title,
        eyebrow=f"{study.task} · {study.name} · {study.created[:10]}",
        header=fill_template(_PACKAGE, "study_header.html", words),
        figures="\n".join(section.html() for section in sections),
        data=page_data(summary, sections),
        scripts=_SCRIPTS,
        series=summary.declared.candidates.plural,
        sections=[kind.source() for kind in kinds],
    )


def _answer_html(found: Answer) -> str:
    """The paragraph: its first sentence stands out, its caveats step back."""
    first, *others = found.sentences
    parts = [f"<strong>{escape(first)}</strong>", *(escape(sentence) for sentence in others)]
    if found.caveats:
        parts.append(f'<span class="caveats">{escape(" ".join(found.caveats))}</span>')
    return " ".join(parts)


def _findings_html(found: Answer) -> str:
    """A paragraph of what the sections found, if they did."""
    if not found.findings:
        return ""
    first, *others = map(escape, found.findings)
    return f'<p class="answer">{" ".join([f"<strong>{first}</strong>", *others])}</p>'


def _picks_html(summary: Summary, picks: Sequence[Pick]) -> str:
    """The cards of what to choose, if anything can be chosen."""
    if not picks:
        return ""
    cards = "".join(_pick_html(summary, pick) for pick in picks)
    heading = "<h2>Best, smallest, fastest</h2>"
    return f'<section class="choices">{heading}<ul class="picks">{cards}</ul></section>'


def _pick_html(summary: Summary, pick: Pick) -> str:
    """The card of one recommended choice."""
    choice = pick.choice
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(summary, choice).items()
    )
    return (
        f'<li class="pick"><p class="roles">{escape(" · ".join(pick.roles))}</p>'
        f"<h3>{glyph_html(summary, choice.candidate)}<span>{escape(choice.candidate)}</span> "
        f"<small>{escape(summary.declared.sizes.name)} {choice.size}</small></h3><dl>{rows}</dl></li>"
    )


def _facts(summary: Summary, choice: Choice) -> dict[str, str]:
    """What a card says of a choice: its quality, then what it costs."""
    declared, quality = summary.declared, choice.quality
    facts = {summary.quality.name: format_quality(quality.mean, quality_unit(summary.quality))}
    if quality.count > 1:
        facts[f"its {quality.count} seeds"] = (
            f"{format_quality(quality.low)} to {format_quality(quality.high)}"
        )
        facts["standard deviation"] = format_quality(quality.std)
    # Another count of a cost is left out where there is none.
    own = [cost for cost in declared.costs if choice.costs[cost.key] is not None or not cost.instead_of]
    facts |= {cost.title: _written(choice, cost) for cost in own}
    facts["training speed"] = format_rate(choice.rate, declared.unit.plural)
    return facts | {cost.title: _written(choice, cost) for cost in (ACTIVATIONS, TRAINING_FLOPS, PARAMETERS)}


def _written(choice: Choice, cost: Cost) -> str:
    write, _ = FORMATS[cost.format]
    return write(choice.costs[cost.key])


def _counts_html(summary: Summary) -> str:
    """How many runs there are, and every status that is not zero."""
    items = [f"<li><b>{len(summary.runs)}</b> run{'s' * (len(summary.runs) != 1)}</li>"]
    items += [
        f'<li class="{status}"><b>{count}</b> {status}</li>'
        for status in STATUSES
        if (count := summary.count(status))
    ]
    return "".join(items)


def _notes(summary: Summary) -> list[str]:
    """The study's own notes, and what the page itself did to the numbers."""
    notes = list(summary.study.notes)
    if len(summary.settings) > 1:
        notes.append(
            "In the answer, quality and speed are averaged over the settings; the other costs are those of "
            "the setting where they are largest."
        )
    if summary.num_foreign:
        plural = "result belongs" if summary.num_foreign == 1 else "results belong"
        notes.append(f"{summary.num_foreign} stored {plural} to no run of this study and not to this page.")
    if absent := left_out(summary.declared):
        modules = " ".join(dict.fromkeys(f"--plugin {name.partition(':')[0]}" for name in absent))
        notes.append(
            f"Not on this page, because their plugins were not loaded: the sections {', '.join(absent)}. If "
            f"you trust that code, gatework report with {modules} writes them too."
        )
    return notes + [f"Measured with {text}." for text in environments(summary.runs)]


def _protocol(summary: Summary, sections: Sequence[Section]) -> dict[str, str]:
    """What was held equal, how learning rates came about, what numbers are of, and terms of the sections."""
    study = summary.study
    lines = {
        f"Held equal: {_BUDGET_NAMES.get(study.budget_kind, study.budget_kind)}": study.budget,
        "Learning rates": _rates_text(summary),
        "Reported": _reported_text(summary),
    }
    for section in sections:
        lines |= section.protocol()
    return lines


def _rates_text(summary: Summary) -> str:
    """Where the learning rates come from."""
    named, sized = summary.declared.candidates.name, summary.declared.sizes.name
    if summary.has_rate_choice:
        return (
            f"chosen on validation data for each {named}, setting and {sized}, by the mean over seeds; "
            "one at which a seed diverged is taken only if there is no other"
        )
    return f"fixed beforehand, one for each {named} and {sized}"


def _reported_text(summary: Summary) -> str:
    """What the qualities are of, and how many seeds stand behind them."""
    seeds = len({run.spec.seed for run in summary.runs})
    of = f"the mean over {seeds} seeds, with the worst and the best of them" if seeds > 1 else "one seed"
    return f"{summary.quality.name} on test data that nothing was selected on: {of}"
