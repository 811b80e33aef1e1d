"""``gatework evaluate KIND``: score language models from anywhere on a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from gatework.cli.bench_options import spellings

if TYPE_CHECKING:
    from gatework.data.ar_slices import Slice
    from gatework.training.slice_report import SliceReport

#: What can be evaluated, and what that is.
KINDS = {
    "ar-slices": "the recall gap: loss on tokens that the context shows and training did not, and elsewhere",
}

_DESCRIPTION = """Score a causal language model of Transformers, ours included, on the tokens of a text that
it could recall from its context (AR hits: the bigram came earlier in the context and is rare in the training
text) and on all others. With --base, also say how much of what MODEL loses against that model lies on AR
hits. For instance: gatework evaluate ar-slices runs/fit/mamba stdlib --base runs/fit/attention"""

_HEAD: dict[Slice, str] = {"overall": "all", "ar_hits": "AR hits", "other": "other"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the kinds of evaluations and their arguments."""
    kinds = parser.add_subcommands(required=False, dest="kind", metavar="KIND")
    slices = ArgumentParser(description=_DESCRIPTION, exit_on_error=False)
    _add_text(slices)
    _add_slices(slices)
    _add_computing(slices)
    kinds.add_subcommand("ar-slices", slices, help=KINDS["ar-slices"])


def _add_text(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model",
        type=str,
        help="folder of a model, directory of a finished `gatework fit`, or name on the hub",
    )
    parser.add_argument(
        "text", type=str, nargs="?", default="stdlib", help="file or folder of text; stdlib by default"
    )
    _add(parser, "base", str, "second model, attention as a rule, for the gap; with the same tokenizer")
    _add(parser, "train", str, "text whose bigrams are counted; by default the train split of TEXT")
    _add(parser, "split", str, "validation, test (default) or, with --train, train or all (default)")
    _add(parser, "suffixes", list[str], "take only files of a folder whose names end so: [.txt,.md]")
    _add(parser, "max_bytes", int, "use no more of a text than this: whole documents")
    _add(parser, "dataset", str, "name or path for datasets.load_dataset, in place of TEXT")
    _add(parser, "dataset_config", str, "its configuration")
    parser.add_argument(*spellings("dataset_split"), type=str, default="train", help="its split that is read")
    parser.add_argument(*spellings("text_column"), type=str, default="text", help="its column of text")
    _add(parser, "cache", str, "folder that keeps the tokens, for texts larger than the memory")
    _add(parser, "tokenizer", str, "name, path or bytes; the model's own by default")


def _add_slices(parser: ArgumentParser) -> None:
    _add(parser, "max_train_count", int, "rare is what training shows at most so often; 1250 of 1e10 tokens")
    _add(parser, "ar_share", float, "choose it so that this share of the scored tokens is AR hits: 0.064")
    _add(parser, "length", int, "tokens of a context; what the models take by default, and at most 1024")
    parser.add_argument(
        "--packing",
        type=str,
        default="windows",
        help="windows: the text in stretches of equal length; documents: each document on its own",
    )
    _add(parser, "max_tokens", int, "score about so many tokens, in contexts spread evenly over the text")


def _add_computing(parser: ArgumentParser) -> None:
    _add(parser, "batch_size", int, "contexts at a time; by the size of the vocabulary by default")
    parser.add_argument(
        "--dtype", type=str, default="float32", help="of the weights: float32, bfloat16 or float16"
    )
    _add(parser, "device", str, "cpu, cuda, ...; the GPU by default, if there is one")
    parser.add_argument(
        *spellings("trust_remote_code"), action="store_true", help="run code that comes with the model"
    )
    _add(parser, "json", str, "also write the numbers to this file")
    parser.add_argument(
        "--plugin",
        type=str,
        action="append",
        default=[],
        help="module that registers mixers of your own; may be repeated",
    )


def _add(parser: ArgumentParser, name: str, kind: Any, text: str) -> None:
    parser.add_argument(*spellings(name), type=kind | None, default=None, help=text)


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
    if options["suffixes"] is not None:
        options["suffixes"] = tuple(options["suffixes"])
    from gatework.files import write_json
    from gatework.training.slice_options import SliceOptions

    chosen = SliceOptions(**options)
    from gatework.training.slice_scores import evaluate_ar_slices

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
