"""What a study on text says of its gap to attention: how much of it lies on AR hits, and what closes it."""

from __future__ import annotations

from collections.abc import Sequence

from gatework.page.quantities import format_quality
from gatework.study.recall_gap import BASE, VISIBLE, GapCell, TextGap, capped, layer_names
from gatework.study.summary import Spread


def gap_sentences(gap: TextGap) -> list[str]:
    """Say where the gap lies, which mixer has the largest and which comes closest; nothing without slices."""
    if not gap.has_slices:
        return []
    if gap.base is None:
        return ["No mixer is attention in all of its layers, so there is no gap to attention to explain."]
    if not gap.of_status("base"):
        return [
            f"{gap.base} has no finished result without a diverged seed{_where(gap)}, so no gap is known."
        ]
    behind = sorted(gap.of_status("gap"), key=_gap, reverse=True)
    if not behind:
        return [
            f"No mixer is clearly worse than {gap.base} on text{_where(gap)}: there is no gap to explain."
        ]
    return [*_share_sentences(gap, behind), _largest_sentence(gap, behind), *_closest_sentences(gap)]


def gap_caveats(gap: TextGap) -> list[str]:
    """Say which mixers have no gap, and why."""
    if not gap.has_slices or not gap.of_status("base"):
        return []
    found = []
    ahead = [cell for cell in gap.of_status("no gap") if is_ahead(cell)]
    if none := [cell for cell in gap.of_status("no gap") if not is_ahead(cell)]:
        found.append(f"Not clearly worse than {gap.base} on text, so no gap: {listed(names(none))}.")
    if ahead:
        found.append(f"Better than {gap.base} on text, so no gap: {listed(names(ahead))}.")
    if lost := gap.of_status("diverged"):
        found.append(f"Without a gap, because a seed diverged: {listed(names(lost))}.")
    return found


def share_text(share: float) -> str:
    """Write the share of a gap, 100% at most: ``82%``."""
    return f"{capped(share):.0%}".replace("-", "−")


def hits_text(gap: TextGap) -> str:
    """Write what AR hits are in this study: their rule and their share of the tokens."""
    counts = " or ".join(f"{count:,}" for count in gap.max_train_counts)
    times = "once" if counts == "1" else f"{counts} times"
    most = f" that occurs at most {times} in the training text" if counts else ""
    share = "" if gap.ar_share is None else f"; {percent(gap.ar_share)} of the test tokens are such hits"
    return f"tokens that complete a bigram{most} and that their context has shown before{share}"


def percent(share: float) -> str:
    """Write a share of tokens with one decimal: ``6.4%``."""
    return f"{share:.1%}"


def names(cells: Sequence[GapCell]) -> list[str]:
    """Return the labels of the cells' mixers."""
    return [cell.cell.mixer for cell in cells]


def listed(texts: Sequence[str]) -> str:
    """Write a list as in a sentence: ``a, b and c``."""
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def nats(value: float) -> str:
    """Write a gap with its unit."""
    return f"{format_quality(value)} nats per token"


def _share_sentences(gap: TextGap, behind: Sequence[GapCell]) -> list[str]:
    share = gap.mean_share
    if share is None:
        return []
    who = f"the {len(behind)} mixers that are" if len(behind) > 1 else "the one mixer that is"
    average = "average gap" if len(behind) > 1 else "gap"
    tokens = "" if gap.ar_share is None else f", which are {percent(gap.ar_share)} of the tokens"
    return [
        f"On text, {share_text(share)} of the {average} to {gap.base} of {who} clearly worse{_where(gap)} "
        f"lies on AR hits{tokens}."
    ]


def _largest_sentence(gap: TextGap, behind: Sequence[GapCell]) -> str:
    worst = behind[0]
    on_hits = f", {share_text(worst.share.mean)} of it on AR hits" if worst.share else ""
    return f"{worst.cell.mixer} has the largest: {nats(_gap(worst))}{on_hits}."


def _closest_sentences(gap: TextGap) -> list[str]:
    """Name the smallest gap among the mixers that are not attention alone, and among the hybrids with it."""
    others = [
        cell
        for cell in [*gap.of_status("gap"), *gap.of_status("no gap")]
        if {*layer_names(cell.cell)} != {BASE}
    ]
    if len(others) < 2:
        return []
    best = min(others, key=_gap)
    hybrid = min((cell for cell in others if BASE in layer_names(cell.cell)), key=_gap, default=None)
    kind = "the hybrid " if best is hybrid else ""
    if is_ahead(best):
        sentence = f"Ahead of {gap.base} by {nats(-_gap(best))} is {kind}{best.cell.mixer}"
    else:
        left = nats(max(_gap(best), 0.0))
        sentence = f"Closest to {gap.base} comes {kind}{best.cell.mixer}, with a gap of {left}"
    if best is hybrid or hybrid is None:
        return [f"{sentence}{_closed(gap, best)}."]
    of_hybrids = f"Of the hybrids with attention, {hybrid.cell.mixer} is the best, with a gap of"
    return [f"{sentence}.", f"{of_hybrids} {nats(_gap(hybrid))}{_closed(gap, hybrid)}."]


def is_ahead(cell: GapCell) -> bool:
    """Whether every seed is better than every seed of the base, by a visible amount."""
    mine = cell.loss("overall")
    base = None if cell.base is None else Spread.of(run.loss() for run in cell.base.runs)
    return mine is not None and base is not None and mine.high < base.low and _gap(cell) <= -VISIBLE


def _closed(gap: TextGap, hybrid: GapCell) -> str:
    """How much of the gap of what the hybrid would be without its attention layers it closes."""
    rest = {name for name in layer_names(hybrid.cell) if name != BASE}
    without = next((cell for cell in gap.of_status("gap") if {*layer_names(cell.cell)} == rest), None)
    if without is None or without is hybrid:
        return ""
    return f": it closes {share_text(1 - _gap(hybrid) / _gap(without))} of that of {without.cell.mixer}"


def _where(gap: TextGap) -> str:
    """Width and setting that the words are of, as far as there are several."""
    setting, width = gap.focus
    at = f" at width {width}" if len(gap.summary.widths) > 1 else ""
    return f"{at} in {setting}" if len(gap.summary.settings) > 1 else at


def _gap(cell: GapCell) -> float:
    spread = cell.gap()
    assert spread is not None
    return spread.mean
