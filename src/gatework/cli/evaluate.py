"""``gatework evaluate KIND``: score language models from anywhere on a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from gatework.cli import add_plugin_argument
from gatework.cli.dataclass_options import add_dataclass_options
from gatework.cli.parser import Parser
from gatework.evaluation.slice_options import SliceOptions
from gatework.files import check_file, write_json

if TYPE_CHECKING:
    from gatework.data.ar_slices import Slice
    from gatework.evaluation.slice_report import SliceReport

#: What can be evaluated, and what that is.
KINDS = {
    "ar-slices": "the recall gap: loss on tokens that the context shows and training did not, and elsewhere",
}

_DESCRIPTION = """Score a causal language model of Transformers, ours included, on the tokens of a text that
it could recall from its context (AR hits: the bigram came earlier in the context and is rare in the training
text) and on all others. With --base, also say how much of what MODEL loses against that model lies on AR
hits. For instance: gatework evaluate ar-slices runs/fit/mamba stdlib --base runs/fit/attention"""

_HEAD: dict[Slice, str] = {"overall": "all", "ar_hits": "AR hits", "other": "other"}


def add_arguments(parser: Parser, argv: Sequence[str]) -> None:
    """Add the kinds of evaluations and their arguments."""
    kinds = parser.add_subcommands(required=False, dest="kind", metavar="KIND")
    slices = Parser(description=_DESCRIPTION)
    _add_slice_arguments(slices)
    kinds.add_subcommand("ar-slices", slices, help=KINDS["ar-slices"])
    parser.kind_parsers = {"ar-slices": slices}


def _add_slice_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=str,
        help="folder of a model, directory of a finished `gatework fit`, or name on the hub",
    )
    parser.add_argument(
        "text", type=str, nargs="?", default="stdlib", help="file or folder of text; stdlib by default"
    )
    parser.add_argument(
        "--base",
        type=str | None,
        default=None,
        help="second model, attention as a rule, for the gap; with the same tokenizer",
    )
    add_dataclass_options(parser, SliceOptions, switches=("trust_remote_code",))
    parser.add_argument("--json", type=str | None, default=None, help="also write the numbers to this file")
    add_plugin_argument(parser)


def run(arguments: Namespace, *, command: Sequence[str]) -> int:
    """List the kinds, or evaluate: a table on standard output, progress on a terminal.

    Returns:
        0; what is wrong is raised as an error.
    """
    if arguments.kind is None:
        width = max(map(len, KINDS))
        print("usage: gatework evaluate KIND [options]\n")
        print("\n".join(f"  {kind:{width}}  {text}" for kind, text in KINDS.items()))
        print("\n`gatework evaluate KIND --help` shows the options of one.")
        return 0
    options = arguments[arguments.kind].as_dict()
    model, text, base, path = (options.pop(name) for name in ("model", "text", "base", "json"))
    del options["plugin"]
    chosen = SliceOptions(**options)
    if path is not None:
        check_file("json", Path(path))
    from gatework.evaluation.slice_scores import evaluate_ar_slices

    report = evaluate_ar_slices(model, text, chosen, base=base, bar=sys.stderr.isatty())
    if path is not None:
        write_json(Path(path), report.record())
    print(table(report))
    return 0


def table(report: SliceReport) -> str:
    """Lay out a report for a terminal; losses are in nats per token."""
    from gatework.data.documents import skipped_words

    scored = report.scores.tokens["overall"]
    cut = "windows of" if report.packing == "windows" else "documents or parts of them, of at most"
    skipped = f"; {skipped_words(report.skipped)}" if report.skipped else ""
    times = {0: "never", 1: "at most once"}.get(
        report.max_train_count, f"at most {report.max_train_count:,} times"
    )
    lines = [
        f"Model: {report.model}",
        *([] if report.base is None else [f"Base: {report.base}"]),
        f"Text: {report.text}, {'all of it' if report.split == 'all' else report.split + ' split'}{skipped}",
        f"Scored: {scored:,} tokens ({report.tokenizer}) in {report.num_contexts:,} {cut} {report.length:,}",
        f"AR hits: {report.scores.share:.2%} of them; the bigram came earlier in the context, and {times} in "
        f"{report.num_train_tokens:,} tokens of {report.train_text} (max_train_count "
        f"{report.max_train_count})",
        "",
        *_columns(report),
    ]
    if report.gap is not None:
        lines += ["", _gap(report)]
    return "\n".join(lines)


def _columns(report: SliceReport) -> list[str]:
    """A row for each slice: tokens, losses and perplexities, and the gap if there are two models."""
    sides = {"": report.scores}
    if report.base_scores is not None:
        sides = {"model ": report.scores, "base ": report.base_scores}
    lines = [["", "tokens", *(side + what for side in sides for what in ("loss", "perplexity"))]]
    for part, name in _HEAD.items():
        numbers = (
            cell
            for scores in sides.values()
            for cell in (f"{scores.loss(part):.4f}", f"{scores.perplexity(part):,.2f}")
        )
        lines.append([name, f"{report.scores.tokens[part]:,}", *numbers])
    bits = (cell for scores in sides.values() for cell in (f"{report.bits_per_byte(scores):.4f}", ""))
    lines.append(["bits per byte", "", *bits])
    if report.base_scores is not None:
        gaps = (f"{report.scores.loss(part) - report.base_scores.loss(part):+.4f}" for part in _HEAD)
        for line, gap in zip(lines, ("gap", *gaps, ""), strict=True):
            line.append(gap)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(["", f"{line[0]:{widths[0]}}", *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    ]


def _gap(report: SliceReport) -> str:
    share = report.ar_share_of_gap
    if share is None:
        return f"No gap: the model is no worse than the base ({report.gap:+.4f} nats per token)."
    return f"Gap: {report.gap:.4f} nats per token, {share:.1%} of it on AR hits."
