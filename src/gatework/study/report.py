"""The report of a study: one self-contained page, ``report.html``, that opens anywhere without a network.

The words (answer, notes, counts) are written here as HTML; the figures and the table are drawn by the
page's own script from one embedded JSON value. Nothing that comes from a file reaches the page unescaped,
and the page's content security policy runs only the scripts whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from gatework._version import __version__
from gatework.registry import list_mixers, mixer_entry
from gatework.study.answer import Answer, Pick, answer, quality_unit
from gatework.study.files import write_atomically
from gatework.study.page_data import environments, layers_text, page_data
from gatework.study.quantities import format_bytes, format_count, format_quality, format_rate
from gatework.study.results import ResultStore
from gatework.study.spec import StudySpec
from gatework.study.summary import STATUSES, Summary, summarise

REPORT_FILE = "report.html"
_SCRIPTS = ("figures.js", "curves.js", "table.js", "main.js")


def write_report(directory: Path) -> Path:
    """Write ``report.html`` into a study directory, from its ``study.json`` and ``results``.

    Args:
        directory: The study directory; the study may be running, or have lost runs.

    Returns:
        The path of the page.

    Raises:
        StudyError: If the directory holds no valid study, one of its files is broken, or the page cannot
            be written.
    """
    study = StudySpec.read(directory)
    summary = summarise(study, ResultStore(directory).read_all())
    path = directory / REPORT_FILE
    # JSON can hold half of a surrogate pair, which UTF-8 cannot: it becomes a question mark.
    write_atomically(path, render_page(summary).encode(errors="replace").decode())
    return path


def render_page(summary: Summary) -> str:
    """Return the page as one HTML document."""
    # Imported here: it is large, and only the page needs it.
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    script = "\n".join(_page_file(name) for name in _SCRIPTS)
    study, found = summary.study, answer(summary)
    return Template(_page_file("template.html")).substitute(
        policy=_policy(plotly, script),
        title=escape(study.title),
        eyebrow=escape(f"{study.task} · {study.name} · {study.created[:10]}"),
        answer=_answer_html(found),
        picks="".join(_pick_html(summary, pick) for pick in found.picks),
        counts=_counts_html(summary),
        notes=_notes_html(summary),
        mixers=_mixers_html(summary),
        command=escape(study.command),
        **{name: escape(text) for name, text in _captions(summary).items()},
        version=escape(__version__),
        style=_page_file("report.css"),
        data=embed_json(page_data(summary)),
        plotly=plotly,
        script=script,
    )


def embed_json(value: Any) -> str:
    """Write JSON that is inert inside a ``<script>`` element: no ``<``, ``>`` or ``&`` remains in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_file(name: str) -> str:
    return (files("gatework.study") / "page" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Allow no network at all, and no script but the given ones (plotly sets styles from its script)."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )


def _answer_html(found: Answer) -> str:
    """The paragraph: its first sentence stands out, its caveats step back."""
    first, *others = found.sentences
    parts = [f"<strong>{escape(first)}</strong>", *(escape(sentence) for sentence in others)]
    if found.caveats:
        parts.append(f'<span class="caveats">{escape(" ".join(found.caveats))}</span>')
    return " ".join(parts)


def _pick_html(summary: Summary, pick: Pick) -> str:
    """The card of one recommended choice."""
    candidate = pick.candidate
    quality, unit = candidate.quality, quality_unit(summary.quality)
    facts = {summary.quality.name: format_quality(quality.mean, unit)}
    if quality.count > 1:
        facts[f"its {quality.count} seeds"] = (
            f"{format_quality(quality.low)} to {format_quality(quality.high)}"
        )
    facts |= {
        "decoding state": format_bytes(candidate.state_bytes),
        "training speed": format_rate(candidate.tokens_per_second),
        "activation memory": format_bytes(candidate.activation_bytes),
        "parameters": format_count(candidate.parameters),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<li class="pick"><p class="roles">{escape(" · ".join(pick.roles))}</p>'
        f"<h3>{_glyph(summary, candidate.mixer)}<span>{escape(candidate.mixer)}</span> "
        f"<small>width {candidate.width}</small></h3><dl>{rows}</dl></li>"
    )


def _glyph(summary: Summary, mixer: str) -> str:
    """Leave room for the symbol and colour that the script gives this mixer everywhere."""
    return f'<span class="glyph" data-mixer="{summary.mixers.index(mixer)}"></span>'


def _counts_html(summary: Summary) -> str:
    """How many runs there are, and every status that is not zero."""
    items = [f"<li><b>{len(summary.runs)}</b> run{'s' * (len(summary.runs) != 1)}</li>"]
    items += [
        f'<li class="{status}"><b>{count}</b> {status}</li>'
        for status in STATUSES
        if (count := summary.count(status))
    ]
    return "".join(items)


def _notes_html(summary: Summary) -> str:
    """The study's own notes, and what the page itself did to the numbers."""
    notes = [*summary.study.notes, _rates_text(summary)]
    if len(summary.settings) > 1:
        notes.append(
            "In the answer, quality and speed are averaged over the settings; "
            "state and memory are those of the setting where they are largest."
        )
    if summary.num_foreign:
        plural = "result belongs" if summary.num_foreign == 1 else "results belong"
        notes.append(f"{summary.num_foreign} stored {plural} to no run of this study and not to this page.")
    notes += [f"Measured with {text}." for text in environments(summary.runs)]
    return "".join(f"<li>{escape(note)}</li>" for note in notes)


def _rates_text(summary: Summary) -> str:
    """Whether the learning rate was chosen on the data that is reported."""
    if summary.has_rate_choice:
        return (
            "Several learning rates were tried; the best one is chosen by its mean on the reported data, "
            "so qualities are optimistic. One at which a seed diverged is taken only if there is no other."
        )
    return (
        "Learning rates were fixed beforehand, one for each mixer and width: "
        "nothing was selected on the reported data."
    )


def _captions(summary: Summary) -> dict[str, str]:
    """The text above each figure: what is drawn, what bars and symbols mean, which corner is good."""
    quality = summary.quality
    direction = f"{quality.name[:1].upper()}{quality.name[1:]}, {quality.better} is better"
    seeds = "Symbols are means over seeds, bars reach from the worst to the best seed."
    crosses = " A cross at the edge marks a mixer of which a seed diverged." if summary.unstable else ""
    layout = "against model width" if len(summary.widths) > 1 else f"at width {summary.widths[0]}"
    panels = ", one panel per setting" if len(summary.settings) > 1 else ""
    rates = f" {_rates_text(summary)}" if summary.has_rate_choice else ""
    corner = "up" if quality.better == "higher" else "down"
    sizes = " Larger symbols are wider models." if len(summary.widths) > 1 else ""
    strokes = " Thicker lines are wider models." if len(summary.widths) > 1 else ""
    ends = " A cross ends a run that diverged." if summary.count("diverged") else ""
    return {
        "width_title": "Does a wider model help?" if len(summary.widths) > 1 else "How good is each mixer?",
        "width_caption": f"{direction}, {layout}{panels}. {seeds}{crosses}{rates}",
        "cost_caption": (
            f"The best place is {corner} and left for state and memory, {corner} and right for speed. "
            f"Nothing measured is both better and cheaper than the points on the grey line.{sizes}{crosses} "
            "Speed was timed during training, on the machine named above; state and memory are counted."
        ),
        "curve_caption": (
            f"Held-out {quality.name} and loss during training. Strong lines are means over seeds, as far as "
            f"all of them were trained; faint lines are the seeds.{strokes}{ends}"
        ),
    }


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
