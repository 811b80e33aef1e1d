"""``gatework bench KIND``: measure or simulate operators; what is timed is checked first."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import bench_gna
from gatework.cli.bench_options import options_digest
from gatework.cli.parser import Parser

#: What can be measured or simulated, and what that is.
KINDS = {
    "attention": "attention under masks: time, memory and share of the ideal, with every engine",
    "gna": "neighbourhood attention under tiles: what strides gain, simulated, and the best of them",
}

#: Those of :data:`gatework.bench.attention.families.FAMILIES`, stated here because that imports PyTorch.
FAMILIES = (
    "full",
    "causal",
    "window",
    "causal-window",
    "documents",
    "causal-documents",
    "prefix",
    "prefix-documents",
    "shared-question",
    "causal-blockwise",
    "global-window",
    "block-causal",
    "block-causal-documents",
    "block-sparse",
    "block-sparse-64",
    "random-blocks",
    "compressed-blocks",
    "neighborhood-2d",
    "neighborhood-2d-blocked",
    "halo-2d",
    "windows-2d",
)

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DESCRIPTION = """Measure attention for every combination of masks, lengths, head sizes, dtypes, passes and
engines. An engine is checked against the definition in float64, gradients included, before it is timed; all
engines of one problem take turns with PyTorch's attention over all pairs. Every finished cell is stored at
once: killed or interrupted, the same command measures the rest. Lists are written [1024,4096]. For instance:
gatework bench attention --masks [causal,window] --lengths [4096,8192] --passes [forward,both]"""


def add_arguments(parser: Parser, argv: Sequence[str]) -> None:
    """Add the kinds of benchmarks and their arguments."""
    kinds = parser.add_subcommands(required=False, dest="kind", metavar="KIND")
    attention = Parser(description=" ".join(_DESCRIPTION.split()))
    _add_problem(attention)
    _add_measurement(attention)
    kinds.add_subcommand("attention", attention, help=KINDS["attention"])
    gna = Parser(description=bench_gna.DESCRIPTION)
    bench_gna.add_arguments(gna)
    kinds.add_subcommand("gna", gna, help=KINDS["gna"])
    parser.kind_parsers = {"attention": attention, "gna": gna}


def _add_problem(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        type=str,
        default="quick",
        help="values of the options that are left out: quick (a minute or two) or published (hours)",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--masks",
        type=list[str] | dict[str, str] | None,
        default=None,
        help=f"of {', '.join(FAMILIES)}; or expressions by names of your own (YAML)",
    )
    parser.add_argument(
        "--mask",
        type=str,
        action="append",
        default=[],
        metavar="EXPRESSION",
        help="one more mask, as it is written in Python: 'SlidingWindow(N // 16, 0) | PrefixLM(64)', where "
        "N is the length; without --masks, only this; may be repeated",
    )
    _add_list(parser, "lengths", int, "numbers of tokens, such as [1024,4096]")
    _add_list(parser, "head_dims", int, "sizes of a head, [64] by default")
    _add_list(parser, "dtypes", str, "of float32 (default), bfloat16, float16, float64")
    _add_list(parser, "engines", str, "engines of gatework.ops.attention; all but reference by default")
    _add_list(parser, "passes", str, "of forward (default), backward (alone), both (one after the other)")
    _add_number(parser, "num_heads", int, "query heads, 4 by default")
    _add_number(parser, "num_kv_heads", int, "key and value heads, as many as query heads by default")
    _add_number(parser, "batch_size", int, "sequences, 1 by default")


def _add_measurement(parser: ArgumentParser) -> None:
    _add_number(parser, "threads", int, "threads of PyTorch, one per core by default")
    _add_number(parser, "repeats", int, "turns of each engine, at least")
    _add_number(parser, "min_time", float, "seconds of each engine, at least")
    parser.add_argument(
        "--max_memory",
        type=str | int | None,
        default=None,
        help="such as 4G: what would need more for all pairs is skipped; half of the machine's by default",
    )
    parser.add_argument(
        "--memory",
        type=bool | None,
        default=None,
        help="whether to measure peak memory, in a process for each cell; true by default",
    )
    parser.add_argument(
        "--output",
        type=str,
        default=None,
        help="directory of the results; by default runs/bench-attention-HASH, HASH that of the options",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete what is in the directory and measure anew, also with other options",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def _add_list(parser: ArgumentParser, name: str, kind: type[int] | type[str], text: str) -> None:
    annotation: Any = list[kind] | None  # type: ignore[valid-type]
    parser.add_argument(f"--{name}", type=annotation, default=None, help=text)


def _add_number(parser: ArgumentParser, name: str, kind: Callable[[str], Any], text: str) -> None:
    annotation: Any = kind | None  # type: ignore[operator]
    parser.add_argument(f"--{name}", type=annotation, default=None, help=text)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """List the kinds, or measure one: a table or JSON on standard output, the rest in the directory.

    Returns:
        0 if every engine that was timed or refused behaved, 1 if one gave wrong numbers or failed.
    """
    if arguments.kind is None:
        width = max(map(len, KINDS))
        print("usage: gatework bench KIND [options]\n")
        print("\n".join(f"  {kind:{width}}  {text}" for kind, text in KINDS.items()))
        print("\n`gatework bench KIND --help` shows the options of one.")
        return 0
    options = arguments[arguments.kind].as_dict()
    return bench_gna.run(options, command) if arguments.kind == "gna" else _attention(options, command)


def _attention(options: dict[str, Any], command: Sequence[str]) -> int:
    from gatework.bench import attention

    del options["config"]
    as_json, own = options.pop("json"), options.pop("mask")
    options["masks"] = _with_own(options["masks"], own)
    options["max_memory"] = read_size(options["max_memory"])
    if options["output"] is None:
        options["output"] = f"runs/bench-attention-{options_digest(options)}"
    bench = attention(**options, command=shlex.join(command))
    print(json.dumps(bench.to_json(), indent=1) if as_json else bench.table())
    print(f"page: {bench.directory}/report.html", file=sys.stderr)
    return 1 if bench.count("wrong") or bench.count("failed") else 0


def _with_own(masks: Any, own: Sequence[str]) -> Any:
    """The masks of both options together; ``None`` if there are none."""
    if not own:
        return masks
    if isinstance(masks, dict):
        return {**masks, **{text: text for text in own}}
    return [*(masks or []), *own]


def read_size(text: str | int | None) -> int | None:
    """Return a number of bytes: ``"4G"``, ``"1.5 GiB"`` and ``"500000"`` are some, all by powers of 1024.

    Raises:
        ValueError: If it is no such text.
    """
    if text is None or isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f"max_memory must be a size such as 4G or 500M, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])
