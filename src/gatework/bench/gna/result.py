"""What was simulated: rows, data frame, JSON, CSV, table, page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.bench.gna.plan import GnaPlan
from gatework.bench.gna.rows import COLUMNS, Row, make_rows
from gatework.bench.store import BENCH_FORMAT
from gatework.files import FileError, exclusive, read_json, remove_leftovers, write_atomically

if TYPE_CHECKING:
    import pandas as pd

REPORT_FILE, JSON_FILE, CSV_FILE = "report.html", "results.json", "results.csv"
_SHAPES = ("grid", "window", "stride", "dilation", "q_tile", "kv_tile")


class GnaBench:
    """The simulations of one plan.

    Attributes:
        plan: What was simulated.
        directory: Where it is stored; ``None`` if nowhere.
        command: What made it.
    """

    def __init__(self, plan: GnaPlan, *, directory: Path | None = None, command: str = "") -> None:
        self.plan = plan
        self.directory = directory
        self.command = command

    @cached_property
    def rows(self) -> list[Row]:
        """One row per stride, window and pair of tiles; see :data:`~gatework.bench.gna.rows.COLUMNS`."""
        return make_rows(self.plan)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a data frame; sizes of axes are texts such as ``"30x48x80"``."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows], columns=[*COLUMNS])

    def table(self, width: int = 100) -> str:
        """Return the rows as text, in lines of at most ``width`` characters."""
        from gatework.bench.gna.table import table

        return table(self, width)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "schema": BENCH_FORMAT,
            "kind": "gna",
            "command": self.command,
            "preset": self.plan.preset,
            "search": self.plan.search,
            "tiling": self.plan.tiling,
            "rows": self.rows,
        }

    def write(self) -> Path:
        """Write the page, JSON and CSV into the directory, and return the path of the page.

        Raises:
            FileError: If they cannot be written, or the directory holds other files than those.
        """
        assert self.directory is not None, "only what has a directory is written"
        from gatework.bench.gna.page import render
        from gatework.page.frame import write_page

        _make_free(self.directory)
        with exclusive(self.directory):
            remove_leftovers(self.directory)
            text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
            write_atomically(self.directory / JSON_FILE, text)
            write_atomically(self.directory / CSV_FILE, self.frame.to_csv(index=False))
            write_page(self.directory / REPORT_FILE, render(self))
        return self.directory / REPORT_FILE

    def __repr__(self) -> str:
        return f"GnaBench({len(self.plan.cases)} cases, {len(self.rows)} rows)"


def _flat(row: Row) -> Row:
    """A row whose lists are texts."""
    shapes = {name: "x".join(map(str, row[name])) for name in _SHAPES}
    causal = "x".join(str(int(flag)) for flag in row["is_causal"])
    return {**row, **shapes, "is_causal": causal}


def _make_free(directory: Path) -> None:
    """Make the directory; what is in it must be an earlier result of this kind, which is replaced."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise FileError(f"cannot use {directory}: {error.strerror or error}") from error
    foreign: Sequence[str] = [name for name in found if name not in (REPORT_FILE, JSON_FILE, CSV_FILE)]
    if not foreign and found:
        path = directory / JSON_FILE
        kind = read_json(path, remedy="choose another output").get("kind") if path.exists() else None
        foreign = found if kind != "gna" else []
    if foreign:
        raise FileError(f"{directory} holds other files ({', '.join(foreign[:3])}); choose another output")
