"""What a running study shows: a bar on a terminal, one line per ended run elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from gatework.study.spec import RunSpec, StudySpec


class Progress:
    """Progress of a study on standard error.

    Args:
        study: The study.
        stored: Status of each of its runs that is stored already.
        shown: Whether to show anything at all.
    """

    def __init__(self, study: StudySpec, stored: Iterable[str], *, shown: bool) -> None:
        from tqdm import tqdm

        self._total = len(study.runs)
        self._sizes = study.declaration.sizes
        self._counts = Counter(stored)
        self._quality = study.quality.name
        self._shown = shown
        self._lines = shown and not sys.stderr.isatty()
        self._bar = tqdm(
            total=self._total,
            initial=self._counts.total(),
            unit="run",
            file=sys.stderr,
            disable=not shown or self._lines,
            dynamic_ncols=True,
        )

    def ended(self, run: RunSpec, result: Mapping[str, Any]) -> None:
        """Show that a run is over; a run that did not finish is named, also above the bar."""
        self._counts[result["status"]] += 1
        label = run.label(self._sizes)
        line = f"[{self._counts.total()}/{self._total}] {result['status']} {label}{self._detail(result)}"
        if self._lines:
            print(line, file=sys.stderr, flush=True)
        elif self._shown and result["status"] != "finished":
            self._bar.write(line, file=sys.stderr)
        self._bar.update()

    def running(self, runs: list[RunSpec]) -> None:
        """Show the counts and what is being trained now."""
        counts = ", ".join(f"{number} {status}" for status, number in sorted(self._counts.items()))
        candidates = ", ".join(dict.fromkeys(run.candidate for run in runs))
        self._bar.set_postfix_str(" · ".join(filter(None, (counts, candidates))), refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._bar.close()

    def _detail(self, result: Mapping[str, Any]) -> str:
        """The headline number of a run that has one; the reason, in one line, of one that failed."""
        if result["status"] == "failed":
            return f": {(result['message'] or 'no reason given').splitlines()[-1]}"
        quality = (result["metrics"] or {}).get("quality")
        return "" if quality is None else f": {self._quality} {quality:.4g}"
