"""Where the gap to attention lies on text: on bigrams that the context has shown before, or on the rest.

A token is an *AR hit* if it completes a bigram that occurred earlier in the same context and is rare in the
training text (:mod:`gatework.data.ar_slices`). The split of a gap follows Zoology, arXiv:2312.04927,
section 3: AR hits hold the share ``dNLL_AR * |T_AR| / (dNLL * |T|)`` of a gap of ``dNLL`` nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal

from gatework.study.summary import Cell, Run, Spread, Summary

#: The mixer that gaps are measured from.
BASE = "attention"
#: Gaps below this many nats per token are printed as 0.000 and called none.
VISIBLE = 0.0005

#: A perplexity of more than ``exp`` of this is beyond all floats.
_LARGEST_LOSS = 709.0

SliceName = Literal["overall", "ar_hits", "other"]
Status = Literal["base", "gap", "no gap", "diverged", "unknown"]


@dataclass(frozen=True)
class GapCell:
    """One mixer in one setting at one width, beside attention in the same setting at the same width.

    The gap of each seed is its loss minus the mean loss of the base's seeds: seeds of two mixers share their
    data order, but nothing else that would make them pairs.

    Attributes:
        cell: The mixer.
        base: Attention; None if there is none that could be compared with.
    """

    cell: Cell
    base: Cell | None

    @cached_property
    def status(self) -> Status:
        """What the cell is beside the base.

        ``gap`` if every seed has a larger loss than every seed of the base, and by a visible amount, ``no
        gap`` if not. ``diverged`` if a seed did, because survivors flatter; ``unknown`` if there is no base
        or no finished seed.
        """
        if self.cell.count("diverged"):
            return "diverged"
        mine, other = self.loss("overall"), _loss(self.base, "overall")
        if mine is None or other is None:
            return "unknown"
        if self.cell is self.base:
            return "base"
        return "gap" if mine.low > other.high and mine.mean - other.mean >= VISIBLE else "no gap"

    def loss(self, name: SliceName) -> Spread | None:
        """Return the loss in nats per token over the finished seeds, on all tokens or on one slice."""
        return _loss(self.cell, name)

    def perplexity(self, name: SliceName) -> Spread | None:
        """Return ``exp(loss)`` over the finished seeds: the mean of theirs, not that of the mean loss."""
        return Spread.of(perplexity(run.loss(name)) for run in self.cell.runs)

    @cached_property
    def ar_share(self) -> float | None:
        """AR hits among the test tokens."""
        spread = Spread.of(run.metric("ar_share") for run in self.cell.runs)
        return None if spread is None else spread.mean

    def gap(self, name: SliceName = "overall") -> Spread | None:
        """Return the loss minus that of the base in nats per token of the slice; below 0 if better."""
        base = _loss(self.base, name)
        if base is None:
            return None
        return self._over_seeds(lambda run: None if (loss := run.loss(name)) is None else loss - base.mean)

    @cached_property
    def on_hits(self) -> Spread | None:
        """What AR hits contribute to the gap, in nats per token of the whole text."""
        return self._over_seeds(self._hits_part)

    @cached_property
    def on_rest(self) -> Spread | None:
        """What the other tokens contribute: with :attr:`on_hits` it adds up to the gap."""
        base = _loss(self.base, "overall")

        def part(run: Run) -> float | None:
            loss, hits = run.loss(), self._hits_part(run)
            return None if base is None or loss is None or hits is None else loss - base.mean - hits

        return self._over_seeds(part)

    @cached_property
    def share(self) -> Spread | None:
        """The share of the gap that lies on AR hits, not capped: above 1 if the mixer is better elsewhere.

        None unless there is a clear gap. The mean is that of the mean gaps, the range that of the seeds.
        """
        gap, hits = self.gap(), self.on_hits
        if self.status != "gap" or gap is None or hits is None or self.base is None:
            return None
        base = _loss(self.base, "overall")
        assert base is not None
        shares = [
            part / (loss - base.mean)
            for run in self.cell.runs
            if (part := self._hits_part(run)) is not None and (loss := run.loss()) is not None
        ]
        return Spread.around(hits.mean / gap.mean, shares)

    def _hits_part(self, run: Run) -> float | None:
        loss, base, share = run.loss("ar_hits"), _loss(self.base, "ar_hits"), run.metric("ar_share")
        return None if loss is None or base is None or share is None else share * (loss - base.mean)

    def _over_seeds(self, of: Callable[[Run], float | None]) -> Spread | None:
        """Summarise over the seeds, None where survivors of a divergence would flatter."""
        return (
            None if self.status in ("diverged", "unknown") else Spread.of(of(run) for run in self.cell.runs)
        )


@dataclass(frozen=True)
class TextGap:
    """The gaps of a study on text.

    Attributes:
        summary: The study.
        base: Label of the mixer that gaps are measured from; None if the study has no attention.
        cells: Every cell of the study, in its order.
    """

    summary: Summary
    base: str | None
    cells: Sequence[GapCell]

    @cached_property
    def has_slices(self) -> bool:
        """Whether any run told AR hits from other tokens."""
        return any(cell.loss("ar_hits") for cell in self.cells)

    @cached_property
    def focus(self) -> tuple[str, int]:
        """Setting and width that the words are of: where the mixers differ most, and the widest."""
        return self.summary.settings[self.summary.clearest_setting], self.summary.sizes[-1]

    @cached_property
    def focused(self) -> list[GapCell]:
        """The cells of that setting and width."""
        return [cell for cell in self.cells if (cell.cell.setting, cell.cell.size) == self.focus]

    def of_status(self, status: Status) -> list[GapCell]:
        """Return the focused cells with that status."""
        return [cell for cell in self.focused if cell.status == status]

    @cached_property
    def mean_share(self) -> float | None:
        """The share of the average gap that lies on AR hits, over the focused mixers with a clear one."""
        parts = [
            (gap.mean, cell.on_hits.mean)
            for cell in self.of_status("gap")
            if (gap := cell.gap()) is not None and cell.on_hits is not None
        ]
        return fmean(hits for _, hits in parts) / fmean(gap for gap, _ in parts) if parts else None

    @cached_property
    def ar_share(self) -> float | None:
        """AR hits among the test tokens of the focus."""
        return next((cell.ar_share for cell in self.focused if cell.ar_share is not None), None)

    @cached_property
    def max_train_counts(self) -> list[int]:
        """The most occurrences in training that a bigram of a hit may have, of each setting that differs."""
        found = (run.metric("max_train_count") for run in self.summary.runs)
        return list(dict.fromkeys(int(count) for count in found if count is not None))


def text_gap(summary: Summary) -> TextGap:
    """Measure the gaps of a study on text.

    The base is the mixer whose layers are all ``attention``; of several, the one labelled so or else the
    first. Without one it is whatever is labelled ``attention``.
    """
    base = find_base(summary)
    bases = {(cell.setting, cell.size): cell for cell in summary.cells if cell.candidate == base}
    usable = {key: cell for key, cell in bases.items() if not cell.count("diverged")}
    cells = [GapCell(cell, usable.get((cell.setting, cell.size))) for cell in summary.cells]
    return TextGap(summary, base, cells)


def find_base(summary: Summary) -> str | None:
    """Return the label of the mixer that gaps are measured from, None if there is none."""
    layers = {label: summary.definitions[label] for label in summary.candidates}
    pure = [label for label in layers if all(layer["name"] == BASE for layer in layers[label])]
    if BASE in layers and (BASE in pure or not pure):
        return BASE
    return pure[0] if pure else None


def layer_names(cell: Cell) -> list[str]:
    """Return the names of the mixers in a cell's layers."""
    return [layer["name"] for layer in cell.runs[0].spec.definition]


def perplexity(loss: float | None) -> float | None:
    """Return ``exp(loss)`` of a loss in nats per token, None where it is unknown or beyond all floats."""
    return math.exp(loss) if loss is not None and loss < _LARGEST_LOSS else None


def capped(share: float) -> float:
    """Return a share of a gap as the paper gives it: 1 at most."""
    return min(share, 1.0)


def _loss(cell: Cell | None, name: str) -> Spread | None:
    return None if cell is None else Spread.of(run.loss(name) for run in cell.runs)
