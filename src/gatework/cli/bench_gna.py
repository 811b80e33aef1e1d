"""``gatework bench gna``: simulate neighbourhood attention under tiles, and search its strides."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from gatework.cli.bench_options import options_digest

_WORDS = """Count the key tiles that a kernel for neighbourhood attention visits, in one to three dimensions,
and say what that gains over attention over all pairs: the simulator of arXiv:2504.16922. Nothing is timed.
Without options it reproduces the paper's tables. With --grid and --window it answers for these; with --search
it proposes strides. Sizes are one number, or one for each axis as [30,48,80]. For instance:
gatework bench gna --grid [30,48,80] --window [18,24,24] --stride [1,8,8] --q-tile [4,8,8] --kv-tile [2,8,8];
gatework bench gna --grid [30,48,80] --window [18,24,24] --kernel blackwell --search;
gatework bench gna --grid [16,44,80] --window [-1,12,24] --stride [[1,1,1],[1,4,8]] --attention-share 0.587"""
DESCRIPTION = " ".join(_WORDS.split())

_SIZES: Any = int | list[int] | None
#: Name, type and help of the options, in order.
_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("preset", str | None, "published: the use cases of the paper, as without any option"),
    ("grid", _SIZES, "tokens of one to three axes, such as [30,48,80]"),
    ("window", _SIZES, "places in a window, such as [18,24,24]; -1 is the whole axis"),
    (
        "stride",
        int | list[int] | list[list[int]] | None,
        "neighbours that share a window, 1 by default; several strides are written [[1,1,1],[1,8,8]]",
    ),
    ("dilation", _SIZES, "distance of a window's places, 1 by default"),
    (
        "is_causal",
        bool | list[bool] | None,
        "whether queries see no later tokens, such as [true,false,false]",
    ),
    ("q_tile", _SIZES, "queries of a tile, such as [4,8,8]; by default all tiles that kernels offer"),
    ("kv_tile", _SIZES, "keys of a tile, such as [2,8,8]; with --q-tile"),
    ("kernel", str | None, "only the tiles of this kernel: blackwell, hopper or flex"),
    ("attention_share", float | None, "share of a model's time that attention takes, such as 0.6"),
    ("sparse_steps", float | None, "share of the steps that are sparse, such as 0.7; with --attention-share"),
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the simulator."""
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    for name, kind, text in _OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=None, help=text)
    parser.add_argument(
        "--search",
        action="store_true",
        help="look for the smallest stride that is perfectly block-sparse, for the Pareto front of strides "
        "and speed-ups, and for windows nearby if no stride is perfect",
    )
    parser.add_argument(
        "--tiling",
        type=str,
        default="static",
        help="what the search goes by: key tiles at multiples of their size (static, the default), or cut "
        "from the windows of each tile of queries (dynamic)",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="directory of report.html, results.json and results.csv; by default runs/bench-gna-HASH, HASH "
        "that of the options",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(options: dict[str, Any], command: Sequence[str]) -> int:
    """Simulate, write the directory, and print a table or JSON.

    Returns:
        0.
    """
    from gatework.bench.gna import gna

    del options["config"]
    as_json = options.pop("json")
    if options["output"] is None:
        options["output"] = f"runs/bench-gna-{options_digest(options)}"
    bench = gna(**options, command=shlex.join(command))
    print(json.dumps(bench.to_json(), indent=1) if as_json else bench.table())
    print(f"page: {bench.directory}/report.html", file=sys.stderr)
    return 0
