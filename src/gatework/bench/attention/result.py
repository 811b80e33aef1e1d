"""What was measured, as rows with everything that follows from them: data frame, JSON, CSV, table, page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING, Any

from gatework.bench.attention.measure import BASELINE, STATUSES
from gatework.bench.attention.plan import PASSES, BenchPlan, Cell, equivalent_command, make_plan
from gatework.bench.store import BENCH_FORMAT, BenchStore
from gatework.files import FileError, write_atomically

if TYPE_CHECKING:
    import pandas as pd

REPORT_FILE, JSON_FILE, CSV_FILE = "report.html", "results.json", "results.csv"
#: Columns of a row, in order.
COLUMNS = (
    "mask",
    "expression",
    "length",
    "head_dim",
    "dtype",
    "pass",
    "engine",
    "status",
    "reason",
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
    "growth_lengths",
    "error",
    "tolerance",
)

Row = dict[str, Any]


class AttentionBench:
    """The measurements of one plan, complete or not.

    Attributes:
        plan: What was to be measured.
        records: The stored cells, by id.
        directory: Where they are stored; ``None`` if nowhere.
        command: What made them.
    """

    def __init__(
        self,
        plan: BenchPlan,
        records: Mapping[str, Mapping[str, Any]],
        *,
        directory: Path | None = None,
        command: str = "",
    ) -> None:
        self.plan = plan
        self.records = records
        self.directory = directory
        self.command = command

    @classmethod
    def open(cls, path: str | Path) -> AttentionBench:
        """Read stored measurements; they may be incomplete.

        Raises:
            FileError: If the directory holds none, or a file is broken.
        """
        store = BenchStore(Path(path), "attention")
        options = store.options()
        try:
            plan = make_plan(preset="quick", **options)
        except (TypeError, ValueError) as error:
            raise FileError(f"{path} holds options that this version does not know ({error})") from error
        command = equivalent_command(plan, path)
        return cls(plan, store.read_all(), directory=Path(path), command=command)

    @cached_property
    def rows(self) -> list[Row]:
        """One row per measurement that has ended, in the order of the plan; see :data:`COLUMNS`.

        Raises:
            FileError: If a stored measurement is broken.
        """
        found = [(cell, self.records.get(cell.cell_id)) for cell in self.plan.cells()]
        rows = [_checked_row(cell, record, self.plan) for cell, record in found if record is not None]
        _add_growth(rows)
        return rows

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=[*COLUMNS])

    @property
    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.plan.cells() if cell.cell_id not in self.records]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Each distinct environment in which cells were measured."""
        found = [record.get("environment") or {} for record in self.records.values()]
        distinct = {json.dumps(value, sort_keys=True): value for value in found if value}
        return [*distinct.values()]

    def count(self, status: str) -> int:
        """Return how many cells have a status."""
        return Counter(row["status"] for row in self.rows)[status]

    def table(self, width: int = 100) -> str:
        """Return the measurements as text, in lines of at most ``width`` characters."""
        from gatework.bench.attention.table import table

        return table(self, width)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values: schema, options, environments, rows."""
        return {
            "schema": BENCH_FORMAT,
            "kind": "attention",
            "command": self.command,
            "options": self.plan.to_json(),
            "baseline": "PyTorch's scaled_dot_product_attention over all pairs, without a mask",
            "environments": self.environments,
            "missing": len(self.missing),
            "cells": self.rows,
        }

    def write(self) -> Path:
        """Write the page, JSON and CSV into the directory, and return the path of the page.

        Raises:
            FileError: If they cannot be written.
        """
        assert self.directory is not None, "only stored measurements are written"
        from gatework.bench.attention.page import render
        from gatework.page.frame import write_page

        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        write_atomically(self.directory / JSON_FILE, text)
        write_atomically(self.directory / CSV_FILE, self.frame.to_csv(index=False))
        write_page(self.directory / REPORT_FILE, render(self))
        return self.directory / REPORT_FILE

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(status)} {status}" for status in STATUSES if self.count(status))
        missing = f"; {len(self.missing)} missing" if self.missing else ""
        return f"AttentionBench({len(self.rows)} cells: {counts}{missing})"


def _checked_row(cell: Cell, record: Mapping[str, Any], plan: BenchPlan) -> Row:
    """The row of a record that may come from a file."""
    try:
        if record["status"] not in STATUSES or record["cell"] != cell.to_json():
            raise ValueError("its status or its cell is another one")
        return _row(cell, record, plan)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"the measurement {cell.cell_id} is broken ({error!r}); delete its file to have it measured again"
        ) from error


def _row(cell: Cell, record: Mapping[str, Any], plan: BenchPlan) -> Row:
    """One measurement with what follows from it; ``None`` where nothing was measured."""
    row: Row = dict.fromkeys(COLUMNS)
    row |= {**cell.to_json(), "status": record["status"], "reason": record["reason"]}
    row["density"] = record.get("density")
    row["tolerance"], row["error"] = record.get("tolerance"), largest_error(record.get("errors"))
    row["first_call_seconds"] = record.get("first_call")
    if record["status"] != "measured":
        return row
    time, baseline, dense = record["time"], record["baseline"], record["dense"]
    seconds, density = time["median"], record["density"]
    row |= {
        "seconds": seconds,
        "seconds_low": time["low"],
        "seconds_high": time["high"],
        "turns": time["turns"],
        "tflops": flops(cell, plan, density) / seconds / 1e12,
        "peak_bytes": record["peak_bytes"],
        "baseline_seconds": baseline["median"],
        "speedup": baseline["median"] / seconds,
        "share_of_ideal": baseline["median"] * density / seconds,
        "dense_seconds": dense and dense["median"],
        "speedup_over_masked_dense": dense and dense["median"] / seconds,
    }
    return row


def flops(cell: Cell, plan: BenchPlan, density: float) -> float:
    """Count the floating-point operations of a pass on the allowed pairs alone.

    ``4 * pairs * heads * head_dim`` forward: a multiplication and an addition for each channel of a score
    and of an output. A backward pass has 2.5 times as many (arXiv:2510.17896, section 4).
    """
    pairs = density * cell.problem.length**2 * plan.batch_size
    return 4 * pairs * plan.num_heads * cell.problem.head_dim * PASSES[cell.kind]


def largest_error(errors: Mapping[str, float | None] | None) -> float | None:
    """Return the largest of the errors; ``None`` if there are none, or one is not finite."""
    values = list((errors or {}).values())
    return None if not values or None in values else max(value for value in values if value is not None)


def _add_growth(rows: Sequence[Row]) -> None:
    """Fit time to a power of the length, for each mask, size, dtype, pass and engine.

    The exponent is the slope of the least-squares line through the logarithms; it needs two lengths.
    """
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["seconds"]:
            key = tuple(row[name] for name in ("mask", "head_dim", "dtype", "pass", "engine"))
            series.setdefault(key, []).append(row)
    for members in series.values():
        slope = exponent([(row["length"], row["seconds"]) for row in members])
        for row in members:
            row["growth"], row["growth_lengths"] = slope, len(members)


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the exponent ``a`` of ``y = c * x ** a`` that fits the logarithms best; ``None`` below two."""
    if len({x for x, _ in points}) < 2:
        return None
    return linear_regression([math.log(x) for x, _ in points], [math.log(y) for _, y in points]).slope


__all__ = ["BASELINE", "COLUMNS", "AttentionBench", "exponent", "flops", "largest_error"]
