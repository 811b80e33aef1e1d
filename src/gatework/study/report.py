"""The report of a study: one self-contained page, ``report.html``, that opens anywhere without a network.

The words (answer, notes, counts) are written here as HTML; the figures and the table are drawn by the
page's own script from one embedded JSON value. Nothing that comes from a file reaches the page unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from gatework.page.frame import assemble_page, fill_template, list_html, protocol_html, write_page
from gatework.page.quantities import format_bytes, format_count, format_flops, format_quality, format_rate
from gatework.registry import list_mixers, mixer_entry
from gatework.study.answer import Answer, Pick, answer, quality_unit
from gatework.study.companion import read_companion
from gatework.study.gap_answer import hits_text
from gatework.study.gap_page import gap_data, gap_html, prediction_html
from gatework.study.page_data import environments, layers_text, page_data
from gatework.study.published import published_caption, published_curves
from gatework.study.recall_gap import TextGap, text_gap
from gatework.study.recall_prediction import predict
from gatework.study.results import ResultStore
from gatework.study.spec import StudySpec
from gatework.study.summary import STATUSES, Summary, summarise

REPORT_FILE = "report.html"
_PACKAGE = "gatework.study"
_SCRIPTS = ("quality.js", "figures.js", "recall_gap.js", "generation.js", "curves.js", "study.js")
_TABLE_CAPTION = (
    "Quality and loss are of test data. A row unfolds to the run's validation numbers, its full "
    "specification and the command behind it; mixers that the legend hides are left out."
)
# What a study may hold equal, in a word.
_BUDGET_NAMES = {"steps": "steps", "tokens": "tokens", "flops": "compute", "seconds": "time"}


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the page of a study, from its ``study.json`` and ``results``.

    The page of a study on text also reads the recall study in its folder ``recall``, if there is one.

    Args:
        directory: The study directory; the study may be running, or have lost runs.
        output: The page; by default ``report.html`` in ``directory``.

    Returns:
        The path of the page.

    Raises:
        FileError: If the directory holds no valid study, one of its files is broken, or the page cannot
            be written.
    """
    summary = read_summary(directory)
    recall = read_companion(directory) if summary.study.task == "text" else None
    path = directory / REPORT_FILE if output is None else output
    write_page(path, render_page(summary, recall))
    return path


def read_summary(directory: Path) -> Summary:
    """Read a study directory.

    Raises:
        FileError: If it holds no valid study, or one of its files is broken.
    """
    return summarise(StudySpec.read(directory), ResultStore(directory).read_all())


def render_page(summary: Summary, recall: Summary | None = None) -> str:
    """Return the page of a study as one HTML document, with the recall study that accompanies one on text."""
    study, found = summary.study, answer(summary, recall)
    gap = text_gap(summary)
    prediction = None if gap is None or recall is None else predict(gap, recall)
    words = {
        "title": escape(study.title),
        "answer": _answer_html(found),
        "findings": _findings_html(found),
        "picks": _picks_html(summary, found.picks),
        "counts": _counts_html(summary),
        "protocol": protocol_html(_protocol(summary, gap)),
        "notes": list_html(_notes(summary)),
        "mixers": _mixers_html(summary),
        "generation": _generation_html(summary),
        "gap": "" if gap is None else gap_html(gap),
        "prediction": "" if gap is None else prediction_html(gap, prediction),
        "command": escape(study.command),
        **{name: escape(text) for name, text in _captions(summary).items()},
    }
    return assemble_page(
        _PACKAGE,
        title=study.title,
        eyebrow=f"{study.task} · {study.name} · {study.created[:10]}",
        header=fill_template(_PACKAGE, "study_header.html", words),
        figures=fill_template(_PACKAGE, "study_figures.html", words),
        table=("Every run", _TABLE_CAPTION, "mixer, setting, status, run id …"),
        data={**page_data(summary), "gap": None if gap is None else gap_data(gap, prediction)},
        scripts=_SCRIPTS,
        series="mixers",
    )


def _answer_html(found: Answer) -> str:
    """The paragraph: its first sentence stands out, its caveats step back."""
    first, *others = found.sentences
    parts = [f"<strong>{escape(first)}</strong>", *(escape(sentence) for sentence in others)]
    if found.caveats:
        parts.append(f'<span class="caveats">{escape(" ".join(found.caveats))}</span>')
    return " ".join(parts)


def _findings_html(found: Answer) -> str:
    """A paragraph of what a study on text found about its gap, if it did."""
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
    candidate = pick.candidate
    quality, unit = candidate.quality, quality_unit(summary.quality)
    facts = {summary.quality.name: format_quality(quality.mean, unit)}
    if quality.count > 1:
        facts[f"its {quality.count} seeds"] = (
            f"{format_quality(quality.low)} to {format_quality(quality.high)}"
        )
        facts["standard deviation"] = format_quality(quality.std)
    facts |= {
        "decoding state": format_bytes(candidate.state_bytes),
        "state as published": format_bytes(candidate.published_state_bytes),
        "training speed": format_rate(candidate.tokens_per_second),
        "activation memory": format_bytes(candidate.activation_bytes),
        "training compute": format_flops(candidate.training_flops),
        "parameters": format_count(candidate.parameters),
    }
    if candidate.published_state_bytes is None:
        del facts["state as published"]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<li class="pick"><p class="roles">{escape(" · ".join(pick.roles))}</p>'
        f"<h3>{_glyph(summary, candidate.mixer)}<span>{escape(candidate.mixer)}</span> "
        f"<small>width {candidate.width}</small></h3><dl>{rows}</dl></li>"
    )


def _glyph(summary: Summary, mixer: str) -> str:
    """Leave room for the symbol and colour that the script gives this mixer everywhere."""
    return f'<span class="glyph" data-series="{summary.mixers.index(mixer)}"></span>'


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
            "In the answer, quality and speed are averaged over the settings; "
            "state, memory and compute are those of the setting where they are largest."
        )
    if summary.num_foreign:
        plural = "result belongs" if summary.num_foreign == 1 else "results belong"
        notes.append(f"{summary.num_foreign} stored {plural} to no run of this study and not to this page.")
    return notes + [f"Measured with {text}." for text in environments(summary.runs)]


def _protocol(summary: Summary, gap: TextGap | None) -> dict[str, str]:
    """What was held equal, how learning rates came about, and what the numbers are of."""
    study = summary.study
    lines = {
        f"Held equal: {_BUDGET_NAMES[study.budget_kind]}": study.budget,
        "Learning rates": _rates_text(summary),
        "Reported": _reported_text(summary),
    }
    if gap is not None and gap.has_slices:
        lines["AR hits"] = hits_text(gap)
    return lines


def _rates_text(summary: Summary) -> str:
    """Where the learning rates come from."""
    if summary.has_rate_choice:
        return (
            "chosen on validation data for each mixer, setting and width, by the mean over seeds; "
            "one at which a seed diverged is taken only if there is no other"
        )
    return "fixed beforehand, one for each mixer and width"


def _reported_text(summary: Summary) -> str:
    """What the qualities are of, and how many seeds stand behind them."""
    seeds = len({run.spec.seed for run in summary.runs})
    of = f"the mean over {seeds} seeds, with the worst and the best of them" if seeds > 1 else "one seed"
    return f"{summary.quality.name} on test data that nothing was selected on: {of}"


def _captions(summary: Summary) -> dict[str, str]:
    """The text above each figure: what is drawn, what bars and symbols mean, which corner is good."""
    quality = summary.quality
    name = f"{quality.name[:1].upper()}{quality.name[1:]}"
    direction = f"{name}, {quality.better} is better"
    seeds = "Symbols are means over seeds; bars reach from the worst to the best seed."
    crosses = " A cross at the edge marks a mixer of which a seed diverged." if summary.unstable else ""
    layout = "against model width" if len(summary.widths) > 1 else f"at width {summary.widths[0]}"
    panels = ", one panel per setting" if len(summary.settings) > 1 else ""
    rates = (
        "Learning rates were chosen on validation data; the qualities are of test data that nothing was "
        "selected on."
        if summary.has_rate_choice
        else "Qualities are of test data; learning rates were fixed beforehand."
    )
    curves = published_curves(summary)
    published = f" {published_caption(summary, curves)}" if curves else ""
    corner = "up" if quality.better == "higher" else "down"
    sizes = " Larger symbols are wider models." if len(summary.widths) > 1 else ""
    strokes = " Thicker lines are wider models." if len(summary.widths) > 1 else ""
    ends = " A cross ends a run that diverged." if summary.count("diverged") else ""
    counted = (
        " State is what decoding here carries; it can be switched to what the mixer's paper counts, for the "
        "mixers that have such a count."
        if any(cell.cost("published_state_bytes") for cell in summary.cells)
        else ""
    )
    return {
        "width_title": "Does a wider model help?" if len(summary.widths) > 1 else "How good is each mixer?",
        "width_caption": f"{direction}, {layout}{panels}. {seeds}{crosses} {rates}{published}",
        "cost_caption": (
            f"The best place is {corner} and left for state, compute and memory, {corner} and right for "
            "speed. Nothing measured is both better and cheaper than the points on the grey line."
            f"{sizes}{crosses}{counted} "
            "Speed was timed during training, on the machine named above; the others are counted. Compute is "
            "that of one whole run, forward and backward."
        ),
        "curve_caption": (
            f"{name} and loss on validation data during training. Strong lines are means over seeds, as far "
            f"as all of them were trained; faint lines are the seeds.{strokes}{ends}"
        ),
    }


def _generation_html(summary: Summary) -> str:
    """The figure of generation, if decoding was measured or is still to be."""
    if not summary.decode_contexts and not any(run.spec.decode_contexts for run in summary.runs):
        return ""
    caption = (
        "Tokens per second when one sequence is decoded greedily, at the end of contexts of growing length, "
        "and the bytes that are carried there from token to token. Both were taken of the trained models; "
        "speed depends on the machine, which was busy with other runs meanwhile. Symbols are means over "
        "seeds, bars reach from the slowest to the fastest."
    )
    ends: dict[str, None] = {}
    for cell in summary.cells:
        for run in cell.runs:
            if run.decoding_stopped:
                ends[f"{cell.mixer} goes no further in {cell.setting}: {run.decoding_stopped}."] = None
    words = {"caption": escape(caption), "ends": list_html(ends)}
    return fill_template(_PACKAGE, "generation_figure.html", words)


def _mixers_html(summary: Summary) -> str:
    """A table row per mixer: symbol, label, layers, and what those layers are."""
    return "".join(
        f'<tr><th scope="row">{_glyph(summary, mixer)}<span>{escape(mixer)}</span></th>'
        f"<td><code>{escape(layers_text(summary, mixer))}</code></td>"
        f"<td>{escape(_about(summary, mixer))}</td></tr>"
        for mixer in summary.mixers
    )


def _about(summary: Summary, mixer: str) -> str:
    """What the registry says of the mixers in a label's layers; nothing of those it does not know."""
    spec = next(run.spec for run in summary.runs if run.spec.mixer == mixer)
    names: Iterable[str] = dict.fromkeys(layer["name"] for layer in spec.layers)
    entries = [mixer_entry(name) for name in names if name in list_mixers()]
    return "; ".join(f"{entry.summary} ({entry.source})" for entry in entries)
