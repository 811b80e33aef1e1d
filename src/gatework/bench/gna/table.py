"""The simulations as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gatework.bench.gna.kernels import shape_text
from gatework.page.quantities import NOT_MEASURED

if TYPE_CHECKING:
    from gatework.bench.gna.result import GnaBench
    from gatework.bench.gna.rows import Row

_SHOWN = ("speedup", "share_of_ideal", "full_share", "dynamic_speedup", "flattened_speedup")
_END_TO_END = ("end_to_end", "paper_end_to_end", "paper_measured")
_HEADS = {
    "stride": "stride",
    "visited": "visited",
    "speedup": "speed-up",
    "share_of_ideal": "of ideal",
    "full_share": "no mask",
    "dynamic_speedup": "dynamic",
    "flattened_speedup": "flat",
    "end_to_end": "e2e",
    "paper_end_to_end": "paper",
    "paper_measured": "measured",
}
_WIDTHS = {"stride": 11, "visited": 9, "flattened_speedup": 7, "end_to_end": 7, "paper_end_to_end": 7}
_MARK = "perfect"


def table(bench: GnaBench, width: int) -> str:
    """Return one block of lines for each window and pair of tiles; then what they mean."""
    lines: list[str] = []
    for _, rows in groupby(bench.rows, key=_block):
        lines += [*_block_lines([*rows], width), ""]
    return "\n".join([*lines, *_legend(bench, width)])


def row_texts(row: Row) -> dict[str, str]:
    """Write the numbers of a row as people read them, with a dash for what is not known."""

    def write(name: str, text: Any) -> str:
        return NOT_MEASURED if row[name] is None else text(row[name])

    texts = {name: write(name, times) for name in row if "speedup" in name}
    texts |= {name: write(name, times) for name in ("end_to_end_partial", "paper_end_to_end_partial")}
    texts |= {name: write(name, times) for name in _END_TO_END}
    texts |= {name: write(name, percent) for name in ("share_of_ideal", "full_share", "attention_share")}
    texts |= {
        name: shape_text(tuple(row[name]))
        for name in ("grid", "window", "stride", "dilation", "q_tile", "kv_tile")
    }
    return texts | {
        "tiles": f"{texts['q_tile']} / {texts['kv_tile']}",
        "sparse_steps": write("sparse_steps", percent),
        "visited": f"{row['worst_visited']}/{row['kv_tiles']}",
        "mean_visited": f"{row['mean_visited']:.1f}",
        "stride_product": str(stride_product(row)),
    }


def stride_product(row: Row) -> int:
    """Return how many neighbours share a window."""
    product = 1
    for step in row["stride"]:
        product *= step
    return product


def times(value: float) -> str:
    """Write a speed-up: ``6.1`` is ``6.10×``."""
    return f"{value:.2f}×"


def percent(value: float) -> str:
    """Write a share: ``0.5`` is ``50 %``."""
    return f"{100 * value:.3g} %"


def _block(row: Row) -> tuple[Any, ...]:
    return row["case"], row["window"], row["q_tile"], row["kv_tile"], row["kernel"]


def _block_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    first = rows[0]
    texts = row_texts(first)
    kernel = f" ({first['kernel']})" if first["kernel"] else ""
    yield _cut(f"{first['case']} {texts['grid']}, window {texts['window']}{_options(first)}", width)
    ideal = f"ideal {texts['ideal_speedup']}"
    if first["exact_ideal_speedup"] != first["ideal_speedup"]:
        ideal += f", {texts['exact_ideal_speedup']} by allowed pairs"
    share = f"; attention is {texts['attention_share']} of the time" if first["attention_share"] else ""
    yield _cut(f"tiles {texts['tiles']}{kernel}; {ideal}{share}", width)
    columns = _columns(rows)
    yield _line([_HEADS[name] for name in columns], columns)
    for row in rows:
        texts = row_texts(row)
        mark = f"  {_MARK}" if row["is_perfect"] else ""
        yield _cut(_line([texts[name] for name in columns], columns) + mark, width)


def _options(row: Row) -> str:
    """Dilation and causality, where there is any."""
    texts = []
    if any(gap > 1 for gap in row["dilation"]):
        texts.append(f", dilation {shape_text(tuple(row['dilation']))}")
    if any(row["is_causal"]):
        axes = [str(axis) for axis, flag in enumerate(row["is_causal"]) if flag]
        texts.append(f", causal on ax{'i' if len(axes) == 1 else 'e'}s {' and '.join(axes)}")
    return "".join(texts)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Those of the operator, and end to end what is known."""
    known = [name for name in _END_TO_END if any(row[name] is not None for row in rows)]
    return ["stride", "visited", *_SHOWN, *known]


def _line(cells: Sequence[str], columns: Sequence[str]) -> str:
    """Cells side by side: the stride to the left of its column, numbers to the right."""
    words = [
        cell.ljust(_WIDTHS[name]) if name == "stride" else cell.rjust(_WIDTHS.get(name, 8))
        for cell, name in zip(cells, columns, strict=True)
    ]
    return " ".join(words).rstrip()


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def _legend(bench: GnaBench, width: int) -> list[str]:
    """What the columns are, and the answer."""
    from gatework.bench.gna.answer import answer

    about = [
        "visited: key tiles that the busiest tile of queries visits, of all. speed-up: all over those. "
        "of ideal: the speed-up over the ideal one, tokens of the grid over tokens of the window. no mask: "
        "visits in which every pair is allowed; perfect if all are. dynamic: the speed-up if key tiles are "
        "cut from the windows; flat: if tiles are runs of the flattened grid.",
    ]
    if any(row["end_to_end"] is not None for row in bench.rows):
        about.append("e2e: speed-up of the whole model, every step sparse.")
    if any(row["paper_end_to_end"] is not None for row in bench.rows):
        about.append("paper, measured: printed in arXiv:2504.16922, by its simulator and on a B200.")
    return [
        *textwrap.wrap(" ".join(about), width),
        "",
        *(line for sentence in answer(bench) for line in textwrap.wrap(sentence, width)),
    ]
