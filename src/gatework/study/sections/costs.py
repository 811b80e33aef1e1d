"""Quality against each cost: those that the task declares, training compute, activation memory, and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatework.page.quantities import capitalised, listed
from gatework.study.page_data import positive, spread_axis
from gatework.study.sections.quality import crosses_text
from gatework.study.sections.section import Section, figure_html
from gatework.study.summary import Summary
from gatework.tasks.declaration import ACTIVATIONS, PARAMETERS, TRAINING_FLOPS, Cost

#: Key of the panel of training speed, which is the only one where more is better.
_RATE = "rate"


class CostsSection(Section):
    """A panel per cost, with the points to which nothing is both better and cheaper."""

    name = "costs"
    script = "costs.js"

    def html(self) -> str:
        """Return the figure."""
        summary, declared = self.summary, self.summary.declared
        own = [slot[0].title for slot in _slots(summary)[:-2]]
        corner = "up" if summary.quality.better == "higher" else "down"
        larger = f" Larger symbols are larger {declared.sizes.plural}." if len(summary.sizes) > 1 else ""
        caption = (
            f"The best place is {corner} and left for {listed([*own, 'compute', 'memory'])}, {corner} and "
            "right for speed. Nothing measured is both better and cheaper than the points on the grey line."
            f"{larger}{crosses_text(summary)}{''.join(map(self._switch_text, _slots(summary)))} "
            "Speed was timed during training, on the machine named above; the others are counted. Compute is "
            "that of one whole run, forward and backward."
        )
        return figure_html("cost", "What does quality cost?", caption, is_wide=True)

    def data(self) -> dict[str, Any]:
        """Return every panel with a value for each cell of the page, and which of them share a place."""
        summary, unit = self.summary, self.summary.declared.unit
        slots = _slots(summary)
        panels = {_link_name(cost): self._panel(cost) for slot in slots for cost in slot}
        rates = [cell.cost(unit.rate) for cell in summary.cells]
        panels[_RATE] = {
            "title": "Training speed",
            "axis": spread_axis(rates, f"Training {unit.plural}/s", "count"),
            "values": [positive(rate) for rate in rates],
            "is_rate": True,
        }
        return {"panels": panels, "places": [*map(_place, slots), {"options": [[_RATE, ""]]}]}

    def _panel(self, cost: Cost) -> dict[str, Any]:
        spreads = [cell.cost(cost.key) for cell in self.summary.cells]
        title = capitalised(cost.noun)
        of = " of one run" if cost == TRAINING_FLOPS else ""
        return {
            "title": title,
            "axis": spread_axis(spreads, f"{title}{of}", cost.format),
            "values": [positive(spread) for spread in spreads],
            "is_rate": False,
        }

    def _switch_text(self, slot: Sequence[Cost]) -> str:
        """Say that a cost can be counted in another way, if it can."""
        if len(slot) == 1:
            return ""
        plural = self.summary.declared.candidates.plural
        first, *others = [f"“{_switch(cost)}”" for cost in slot]
        return (
            f" {capitalised(slot[0].title)} is counted {first}; it can be switched to {listed(others)}, for "
            f"the {plural} that have such a count."
        )


def _slots(summary: Summary) -> list[list[Cost]]:
    """The costs of the panels, from left to right; those that are counts of the same share a place."""
    own = summary.declared.costs
    keys = [cost.key for cost in own]
    slots = [
        [cost, *(other for other in own if other.instead_of == cost.key and _is_known(summary, other))]
        for cost in own
        if cost.instead_of not in keys
    ]
    return [*(slots or [[PARAMETERS]]), [TRAINING_FLOPS], [ACTIVATIONS]]


def _is_known(summary: Summary, cost: Cost) -> bool:
    return any(cell.cost(cost.key) for cell in summary.cells)


def _place(slot: Sequence[Cost]) -> dict[str, Any]:
    """The control that switches between the costs of one place."""
    options = [[_link_name(cost), _switch(cost)] for cost in slot]
    return {"name": options[0][0], "label": capitalised(slot[0].title), "options": options}


def _switch(cost: Cost) -> str:
    return cost.switch or cost.title


def _link_name(cost: Cost) -> str:
    """What a cost is called in links to the page: without its unit."""
    return cost.key.removesuffix("_bytes")
