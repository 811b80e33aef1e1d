"""A picture of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gatework.masks.blocks import uniform_edges

if TYPE_CHECKING:
    from gatework.masks.algebra import Mask

#: Most cells along a side; longer sequences are drawn in blocks.
_CELLS = 256
#: Empty, partial and full.
_COLOURS = ("#f4f4f2", "#8fb8de", "#1f5a94")


def picture(mask: Mask, q_length: int, kv_length: int, *, title: str) -> Any:
    """Draw a mask that tells neither sequences nor heads apart, as a plotly figure."""
    from plotly import graph_objects

    size = max(1, -(-max(q_length, kv_length) // _CELLS))
    if size == 1:
        cells = mask.to_dense(q_length, kv_length).to(torch.int8) * 2
    else:
        cells = mask.classify(uniform_edges(q_length, size), uniform_edges(kv_length, size))
    scale = [[(step + end) / 3, colour] for step, colour in enumerate(_COLOURS) for end in (0, 1)]
    # Middles of cells: the picture of a block begins where the block does.
    heatmap = graph_objects.Heatmap(
        z=cells.numpy(),
        x0=(size - 1) / 2,
        dx=size,
        y0=(size - 1) / 2,
        dy=size,
        zmin=0,
        zmax=2,
        colorscale=scale,
        showscale=False,
        hovertemplate="query %{y}, key %{x}<extra></extra>",
    )
    figure = graph_objects.Figure(heatmap)
    figure.update_layout(title=title, template="plotly_white", margin={"l": 50, "r": 10, "t": 50, "b": 50})
    figure.update_xaxes(title="key", constrain="domain", showgrid=False)
    figure.update_yaxes(
        title="query", autorange="reversed", scaleanchor="x", constrain="domain", showgrid=False
    )
    return figure
