"""The page of a benchmark of attention: one self-contained file with figures and every number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gatework.bench.attention.measure import STATUSES
from gatework.bench.attention.table import row_texts
from gatework.page.frame import assemble_page
from gatework.page.quantities import format_bytes, format_ratio, format_seconds, log_axis

if TYPE_CHECKING:
    from gatework.bench.attention.result import AttentionBench, Row

_SCRIPTS = ("bench/page/bench.js",)
_TITLE = "Attention under a mask"
_ENGINES = {
    "reference": "the definition, over all pairs",
    "dense": "PyTorch's fused attention over all pairs, with the mask",
    "blocked": "only the tiles that the mask needs, with numba if it is installed",
    "blocked-torch": "only the tiles that the mask needs, in PyTorch",
    "blocked-numba": "only the tiles that the mask needs, in numba",
    "flex": "compiled FlexAttention",
}
#: Numbers that the page's script sorts by, saves or draws.
_VALUES = (
    "length",
    "head_dim",
    "density",
    "seconds",
    "seconds_low",
    "seconds_high",
    "turns",
    "first_call_seconds",
    "tflops",
    "peak_bytes",
    "baseline_seconds",
    "speedup",
    "share_of_ideal",
    "dense_seconds",
    "speedup_over_masked_dense",
    "growth",
    "error",
    "tolerance",
)


def render(bench: AttentionBench) -> str:
    """Return the page as one HTML document."""
    name = _name(bench.directory)
    words = {
        "heading": _TITLE,
        "answer": answer(bench),
        "counts": _counts(bench),
        "protocol": _protocol(bench),
        "notes": _notes(bench),
        "command": bench.command,
        "masks": _masks(bench),
    }
    return assemble_page(
        "bench/page/bench.html",
        words,
        title=f"{_TITLE}: {name}",
        eyebrow=f"gatework bench attention · {name}",
        data=page_data(bench),
        scripts=_SCRIPTS,
        series="engines",
    )


def page_data(bench: AttentionBench) -> dict[str, Any]:
    """Collect what the page's script draws: plain JSON, without a number that is not finite."""
    plan, rows = bench.plan, bench.rows
    timed = [row for row in rows if row["seconds"]]
    times = [row[name] for row in timed for name in ("seconds", "baseline_seconds")]
    times += [row["baseline_seconds"] * row["density"] for row in timed]
    peaks = [row["peak_bytes"] for row in rows if row["peak_bytes"]]
    rates = [row["tflops"] for row in rows if row["tflops"]]
    return {
        "name": _name(bench.directory),
        "series": [{"name": name, "about": _ENGINES.get(name, name)} for name in plan.engines],
        "masks": [{"name": name, "text": text} for name, text in plan.masks.items()],
        "lengths": plan.lengths,
        "head_dims": plan.head_dims,
        "dtypes": plan.dtypes,
        "passes": plan.passes,
        "axes": {
            "length": log_axis(plan.lengths, "Tokens", lambda value: f"{value:.0f}", 2),
            "seconds": log_axis(times, "Time", format_seconds, 10),
            "peak_bytes": log_axis(peaks, "Peak memory", format_bytes, 2),
            "tflops": log_axis(rates, "TFLOP/s on allowed pairs", lambda value: f"{value:g}", 10),
        },
        "rows": [_row(bench, row) for row in rows],
    }


def answer(bench: AttentionBench) -> list[str]:
    """Say in words what was found, the most important sentence first."""
    wrong = [row for row in bench.rows if row["status"] == "wrong"]
    sentences = []
    if wrong:
        names = ", ".join(dict.fromkeys(row["engine"] for row in wrong))
        sentences.append(f"{_cells(len(wrong))} gave wrong numbers ({names}) and {_were(wrong)} not timed.")
    timed = [row for row in bench.rows if row["status"] == "measured"]
    shares = {
        engine: [row["share_of_ideal"] for row in timed if row["engine"] == engine]
        for engine in bench.plan.engines
    }
    known = sorted(((median(values), engine) for engine, values in shares.items() if values), reverse=True)
    if known:
        listed = ", ".join(f"{engine} {share:.0%}" for share, engine in known)
        sentences.append(f"Share of the ideal speed-up, at the median of what was timed: {listed}.")
    if timed:
        best = max(timed, key=lambda row: row["speedup"])
        sentences.append(
            f"The largest speed-up over attention without a mask is {format_ratio(best['speedup'])}: "
            f"{best['engine']} on {best['mask']}, {best['length']} tokens, {best['pass']}, {best['dtype']}."
        )
    if bench.missing:
        sentences.append(f"{_cells(len(bench.missing))} {_are(bench.missing)} still to be measured.")
    return sentences or ["Nothing has been timed yet."]


def _cells(count: int) -> str:
    return f"{count} measurement{'s' * (count != 1)}"


def _were(values: Sequence[Any]) -> str:
    return "was" if len(values) == 1 else "were"


def _are(values: Sequence[Any]) -> str:
    return "is" if len(values) == 1 else "are"


def _name(directory: Path | None) -> str:
    return "not stored" if directory is None else directory.resolve().name


def _row(bench: AttentionBench, row: Row) -> dict[str, Any]:
    """One row of the table, and one point of each figure."""
    texts = row_texts(row)
    hover = [
        f"{row['engine']}, {row['mask']}",
        f"{row['length']} tokens, {row['head_dim']} channels, {row['dtype']}, {row['pass']}",
        f"{texts['seconds']} ({texts['spread']}), {texts['tflops']} TFLOP/s",
        f"{texts['speedup']} of no mask, {texts['share_of_ideal']} of the ideal",
        f"peak memory {texts['peak_bytes']}",
    ]
    return {
        "id": "|".join(str(row[name]) for name in ("mask", "length", "head_dim", "dtype", "pass", "engine")),
        "series": bench.plan.engines.index(row["engine"]),
        "mask": [*bench.plan.masks].index(row["mask"]),
        "dtype": row["dtype"],
        "pass": row["pass"],
        "status": row["status"],
        "reason": row["reason"],
        "values": {name: row[name] for name in _VALUES},
        "texts": texts,
        "hover": hover,
    }


def _counts(bench: AttentionBench) -> list[tuple[str | None, int, str]]:
    """How many measurements there are, and every status that is not zero."""
    number = len(bench.rows)
    counts = [(status, bench.count(status), status) for status in STATUSES]
    counts.append(("missing", len(bench.missing), "missing"))
    return [(None, number, "cell" + "s" * (number != 1)), *(found for found in counts if found[1])]


def _protocol(bench: AttentionBench) -> dict[str, str]:
    """What was checked, what was timed, and what the numbers are of."""
    plan = bench.plan
    return {
        "Checked first": (
            "every engine against the definition in float64 on the same inputs, gradients included; long "
            "sequences on a sample of query rows over all keys. What is wrong is not timed"
        ),
        "Timed": (
            f"in turns with attention without a mask, {plan.repeats} turns and {plan.min_time:g} s of each "
            f"at least, {plan.threads} thread{'s' * (plan.threads > 1)}; the first call, which may compile "
            "or plan, is not counted"
        ),
        "Ideal": "the time of attention without a mask, times the share of pairs that the mask allows",
        "Peak memory": (
            "resident memory beyond the inputs, in a process of its own: result, scratch, and what the "
            "engine keeps of the mask"
            if plan.memory
            else "not asked for"
        ),
    }


def _notes(bench: AttentionBench) -> list[str]:
    plan = bench.plan
    heads = f"{plan.num_heads} query heads on {plan.num_kv_heads} key heads, batch {plan.batch_size}."
    made = [
        ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
        for found in bench.environments
    ]
    return [heads, *(f"Measured with {text}." for text in made)]


def _masks(bench: AttentionBench) -> list[tuple[str, str, str]]:
    """A row per mask: name, text, and its density at each length."""
    rows = []
    for name, text in bench.plan.masks.items():
        densities = {
            row["length"]: row_texts(row)["density"]
            for row in bench.rows
            if row["mask"] == name and row["density"] is not None
        }
        known = ", ".join(f"{length}: {density}" for length, density in densities.items())
        rows.append((name, text, known or "unknown"))
    return rows
