"""What a running benchmark shows: a bar on a terminal, one line per finished cell elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gatework.page.quantities import format_seconds


class Progress:
    """Progress of a benchmark on standard error.

    Args:
        total: Number of cells.
        stored: How many of them are stored already.
        shown: Whether to show anything at all.
    """

    def __init__(self, total: int, *, stored: int, shown: bool) -> None:
        from tqdm import tqdm

        self._total = total
        self._count = stored
        self._shown = shown
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=stored,
            unit="cell",
            file=sys.stderr,
            disable=not shown or self._lines,
            dynamic_ncols=True,
        )

    def running(self, label: str) -> None:
        """Show which cell is being looked at."""
        self._bar.set_postfix_str(label)

    def ended(self, record: Mapping[str, Any]) -> None:
        """Show that a cell is finished; one that was wrong or failed is named, also above the bar."""
        self._count += 1
        cell = record["cell"]
        label = ", ".join(
            str(cell[name]) for name in ("mask", "length", "head_dim", "dtype", "pass", "engine")
        )
        time = record.get("time")
        detail = format_seconds(time["median"]) if time else record["reason"]
        line = f"[{self._count}/{self._total}] {record['status']} {label}: {detail}"
        if self._lines:
            print(line, file=sys.stderr, flush=True)
        elif self._shown and record["status"] in ("wrong", "failed"):
            self._bar.write(line, file=sys.stderr)
        self._bar.update()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._bar.close()
