"""The measurements as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gatework.bench.attention.measure import BASELINE, STATUSES
from gatework.page.quantities import NOT_MEASURED, format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    from gatework.bench.attention.result import AttentionBench, Row

_PASS_TITLES = {
    "forward": "forward pass, without gradients",
    "backward": "backward pass alone",
    "both": "forward and backward pass",
}
_HEADS = ("length", "engine", "time", "20 to 80 %", "TFLOP/s", "peak", "speed-up", "of ideal", "growth")
_WIDTHS = (7, 15, 9, 19, 8, 9, 9, 9, 7)


def table(bench: AttentionBench, width: int) -> str:
    """Return one block of lines for each pass, dtype and size, and in it each mask; then what they mean."""
    lines: list[str] = []
    for key, rows in groupby(_ordered(bench.rows), key=_block):
        lines += [_title(bench, key), *_block_lines([*rows], width), ""]
    return "\n".join([*lines, *_legend(bench, width)])


def _ordered(rows: Sequence[Row]) -> list[Row]:
    blocks = list(dict.fromkeys(_block(row) for row in rows))
    return sorted(rows, key=lambda row: blocks.index(_block(row)))


def _block(row: Row) -> tuple[str, str, int]:
    return row["pass"], row["dtype"], row["head_dim"]


def _title(bench: AttentionBench, key: tuple[str, str, int]) -> str:
    kind, dtype, head_dim = key
    plan = bench.plan
    heads = f"{plan.num_heads} heads of {head_dim}"
    if plan.num_kv_heads != plan.num_heads:
        heads += f" on {plan.num_kv_heads} key heads"
    batch = f", batch {plan.batch_size}" if plan.batch_size > 1 else ""
    return f"{_PASS_TITLES[kind]}: {dtype}, {heads}{batch}, {plan.threads} thread{'s' * (plan.threads > 1)}"


def _block_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    yield _line(_HEADS)
    for (mask, text), of_mask in groupby(rows, key=lambda row: (row["mask"], row["expression"])):
        yield _cut(mask if mask == text else f"{mask} = {text}", width)
        for length, of_length in groupby(of_mask, key=lambda row: row["length"]):
            yield from _length_lines(length, [*of_length], width)


def _length_lines(length: int, rows: Sequence[Row], width: int) -> Iterator[str]:
    """The baseline of a length, its density, and a line per engine."""
    timed = next((row for row in rows if row["seconds"]), None)
    density = next((row["density"] for row in rows if row["density"] is not None), None)
    if density is not None:
        base = format_seconds(None if timed is None else timed["baseline_seconds"])
        ideal = f"density {density:.2%}, ideal {format_ratio(1 / density)}" if density else "density 0"
        yield f"{_line((str(length), BASELINE, base))}  {ideal}"
    for row in rows:
        if row["status"] == "measured":
            yield _line(("", row["engine"], *_texts(row)))
        else:
            status = "WRONG" if row["status"] == "wrong" else row["status"]
            yield _cut(f"{_line(('', row['engine']))}  {status}: {row['reason']}", width)


def _texts(row: Row) -> list[str]:
    texts = row_texts(row)
    return [texts[name] for name in _SHOWN]


_SHOWN = ("seconds", "spread", "tflops", "peak_bytes", "speedup", "share_of_ideal", "growth")


def row_texts(row: Row) -> dict[str, str]:
    """Write the numbers of a row as people read them, with a dash for what was not measured."""

    def write(name: str, text: Any) -> str:
        return NOT_MEASURED if row[name] is None else text(row[name])

    low, high = row["seconds_low"], row["seconds_high"]
    return {
        "length": str(row["length"]),
        "head_dim": str(row["head_dim"]),
        "density": write("density", lambda value: f"{100 * value:.3g} %"),
        "seconds": format_seconds(row["seconds"]),
        "spread": NOT_MEASURED if low is None else f"{format_seconds(low)} – {format_seconds(high)}",
        "first_call_seconds": format_seconds(row["first_call_seconds"]),
        "baseline_seconds": format_seconds(row["baseline_seconds"]),
        "dense_seconds": format_seconds(row["dense_seconds"]),
        "tflops": write("tflops", lambda value: f"{value:.3g}"),
        "peak_bytes": format_bytes(row["peak_bytes"]),
        "speedup": write("speedup", format_ratio),
        "share_of_ideal": write("share_of_ideal", lambda value: f"{100 * value:.0f} %"),
        "speedup_over_masked_dense": write("speedup_over_masked_dense", format_ratio),
        "growth": write("growth", lambda value: f"{value:.2f}"),
        "error": write("error", lambda value: f"{value:.1e}"),
    }


def _line(cells: Sequence[str]) -> str:
    """Cells side by side: the engine to the left of its column, numbers to the right."""
    words = [
        cell.ljust(width) if index == 1 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=False))
    ]
    return " ".join(words).rstrip()


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _legend(bench: AttentionBench, width: int) -> list[str]:
    counts = ", ".join(f"{bench.count(status)} {status}" for status in STATUSES if bench.count(status))
    missing = f", {len(bench.missing)} missing" if bench.missing else ""
    text = (
        f"{counts}{missing}. Every engine was checked against the definition in float64 before it was "
        f"timed. '{BASELINE}' is PyTorch's attention over all pairs, timed in turns with the others: "
        "speed-up is its time over theirs, the ideal is 1 / density. TFLOP/s count allowed pairs. Growth is "
        "the exponent of the length. Peak is memory beyond the inputs, in a process of its own."
    )
    return textwrap.wrap(text, width)
