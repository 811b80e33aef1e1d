"""The simulator as one function: check the options, simulate, write what was found."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from gatework.bench.gna.plan import Strides, make_plan
from gatework.bench.gna.result import GnaBench
from gatework.bench.gna.simulator import Flags, Sizes
from gatework.files import check_directory


def gna(
    *,
    preset: str | None = None,
    grid: Sizes | None = None,
    window: Sizes | None = None,
    stride: Strides | None = None,
    dilation: Sizes | None = None,
    is_causal: Flags | None = None,
    q_tile: Sizes | None = None,
    kv_tile: Sizes | None = None,
    kernel: str | None = None,
    attention_share: float | None = None,
    sparse_steps: float | None = None,
    search: bool = False,
    tiling: str = "static",
    output: str | Path | None = None,
    command: str | None = None,
) -> GnaBench:
    """Simulate what neighbourhood attention can gain under tiles (arXiv:2504.16922, appendix B.1).

    The same as ``gatework bench gna``. Nothing is timed: numbers of tiles are counted.

    Args:
        preset: ``"published"``, the use cases of the paper, which is also what no option at all means.
        grid: Tokens of one to three axes.
        window: Places in a window along each axis; -1 is the whole axis.
        stride: Neighbours that share a window, along each axis; several strides are a list of lists. 1 by
            default.
        dilation: Distance of a window's places, 1 by default.
        is_causal: Whether queries see no later tokens of an axis.
        q_tile: Queries of a tile along each axis; with ``kv_tile``. All pairs that kernels offer by default.
        kv_tile: Keys of a tile.
        kernel: Only the tiles of this one: ``"blackwell"``, ``"hopper"`` or ``"flex"``.
        attention_share: Share of a model's time that attention over all pairs takes, for the speed-up end to
            end.
        sparse_steps: Share of the steps that are sparse, for that speed-up with the others dense.
        search: Look for the smallest stride that is perfectly block-sparse, the Pareto front of strides and
            speed-ups, and, where no stride is perfect, for windows nearby that have one.
        tiling: What the search goes by: key tiles at multiples of their size, ``"static"``, or cut from the
            windows of each tile of queries, ``"dynamic"``.
        output: Directory of page, JSON and CSV; stored nowhere by default.
        command: What the page says made it.

    Raises:
        TypeError: If an option has another type.
        ValueError: If a value is impossible, options do not go together, or ``output`` cannot be used.
    """
    options = {name: value for name, value in locals().items() if name not in ("output", "command")}
    directory = None if output is None else Path(output)
    if directory is not None:
        check_directory("output", directory)
    plan = make_plan(**options)
    bench = GnaBench(plan, directory=directory, command=command or _equivalent(options, output))
    if directory is not None:
        bench.write()
    return bench


def _equivalent(options: dict[str, Any], output: str | Path | None) -> str:
    """The command that does the same as a call."""
    words = ["gatework", "bench", "gna"]
    for name, value in options.items():
        if value is True and name == "search":
            words.append("--search")
        elif value not in (None, False) and (name, value) != ("tiling", "static"):
            text = str(value).replace(" ", "").replace("(", "[").replace(",)", "]").replace(")", "]")
            words.append(
                f"--{name.replace('_', '-')}={text.replace('True', 'true').replace('False', 'false')}"
            )
    if output is not None:
        words.append(f"--output={output}")
    return shlex.join(words)
