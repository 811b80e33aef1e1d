"""The report of a study: one self-contained page, ``report.html``, that opens anywhere without a network.

The page is a head with the answer, put together here, and sections (:mod:`gatework.study.sections`). Figures
and the table are drawn by the page's own scripts from one embedded JSON value. Whatever comes from a file is
text on the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatework.files import check_file
from gatework.page.frame import assemble_page, write_page
from gatework.page.quantities import FORMATS, format_quality, format_rate
from gatework.study.answer import Pick, answer, quality_unit
from gatework.study.companion import read_companion
from gatework.study.page_data import environments, page_data
from gatework.study.results import ResultStore
from gatework.study.sections import left_out, page_sections
from gatework.study.sections.section import Section
from gatework.study.spec import StudySpec
from gatework.study.summary import STATUSES, Choice, Summary, summarise
from gatework.tasks.declaration import ACTIVATIONS, PARAMETERS, TRAINING_FLOPS, Cost

REPORT_FILE = "report.html"
_SCRIPTS = ("study/page/axes.js", "study/page/study.js")
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
    if output is not None:
        check_file("output", path)
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
        "heading": study.title,
        "answer": found.sentences,
        "caveats": found.caveats,
        "findings": found.findings,
        "counts": _counts(summary),
        "protocol": _protocol(summary, sections),
        "picks": [_card(summary, pick) for pick in found.picks],
        "notes": _notes(summary),
        "command": study.command,
        "sections": [section.html() for section in sections],
    }
    return assemble_page(
        "study/page/study.html",
        words,
        title=study.title,
        eyebrow=f"{study.task} · {study.name} · {study.created[:10]}",
        data=page_data(summary, sections),
        scripts=_SCRIPTS,
        series=summary.declared.candidates.plural,
        sections=[kind.source() for kind in kinds],
    )


def _card(summary: Summary, pick: Pick) -> dict[str, Any]:
    """The card of one recommended choice."""
    choice = pick.choice
    return {
        "roles": pick.roles,
        "series": summary.candidates.index(choice.candidate),
        "candidate": choice.candidate,
        "size": f"{summary.declared.sizes.name} {choice.size}",
        "facts": _facts(summary, choice),
    }


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


def _counts(summary: Summary) -> list[tuple[str | None, int, str]]:
    """How many runs there are, and every status that is not zero."""
    number = len(summary.runs)
    counts = [(status, summary.count(status), status) for status in STATUSES]
    return [(None, number, "run" + "s" * (number != 1)), *(found for found in counts if found[1])]


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
