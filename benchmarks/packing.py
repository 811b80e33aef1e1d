"""Training on packed documents against training on padded ones, at the lengths of real documents.

Both sides train the same language model on the same documents, some of the training split of the default
corpus in random order, once through. *Padded*: a row is one document, or a piece of one that is longer than
a row, and a batch is as wide as its longest row. *Packed*: documents lie end to end and are cut where a row
ends, and ``seq_idx`` keeps them apart. A batch has as many rows on both sides; forward pass, backward pass
and optimizer step are timed. Before that, both sides must give the same losses for the same pieces.

How much padding there is depends on the documents that happen to be drawn. Of several draws the one is taken
whose share of useful positions in padded batches is nearest to that of the whole split.

    python benchmarks/packing.py [--tokenizer bpe] [--lengths 1024 2048 4096 8192] [--rows 4] [--tokens 32768]
        [--mixers attention base_conv gated_linear_attention] [--turns 3] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from _timing import settle_allocator, take_turns
from gatework.data.packing import PackedRows, PaddedRows
from gatework.data.tokens import TokenSplit, load_tokens
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM

#: Options of the mixers that are measured unless others are named.
MIXERS: dict[str, dict[str, Any]] = {
    "attention": {"num_heads": 2},
    "base_conv": {"kernel_size": 3},
    "gated_linear_attention": {"num_heads": 2},
}
#: Draws of documents among which the most typical is taken.
DRAWS = 64


class Batch(NamedTuple):
    """Rows of a training step; ``seq_idx`` is ``None`` where rows are padded."""

    inputs: Tensor
    labels: Tensor
    seq_idx: Tensor | None = None


def cut(lengths: np.ndarray, row: int) -> np.ndarray:
    """Lengths of the pieces of documents that are no longer than a row."""
    return np.concatenate([[*[row] * (n // row), *([n % row] if n % row else [])] for n in lengths])


def share_of_useful(lengths: np.ndarray, row: int, rows: int, gen: np.random.Generator) -> float:
    """Share of the positions of padded batches that hold a token."""
    pieces = gen.permutation(cut(lengths, row)).astype(int)
    batches = [pieces[start : start + rows] for start in range(0, len(pieces), rows)]
    return float(pieces.sum() / sum(batch.max() * len(batch) for batch in batches))


def draw(lengths: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    """Which documents to train on: about ``tokens`` tokens of them."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    return order[: int(np.searchsorted(lengths[order].cumsum(), tokens)) + 1]


def typical_draw(lengths: np.ndarray, tokens: int, row: int, rows: int) -> tuple[np.ndarray, float, float]:
    """The draw whose share of useful positions is nearest to that of all documents, and both shares."""
    whole = share_of_useful(lengths, row, rows, np.random.default_rng(0))
    draws = [draw(lengths, tokens, seed) for seed in range(DRAWS)]
    shares = [
        share_of_useful(limited(lengths[d], tokens), row, rows, np.random.default_rng(1)) for d in draws
    ]
    best = int(np.abs(np.array(shares) - whole).argmin())
    return draws[best], shares[best], whole


def limited(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """The same with a shorter last document, so that there are no more than ``tokens`` of them together."""
    before = lengths.cumsum() - lengths
    return np.minimum(lengths, tokens - before)


def subset(split: TokenSplit, chosen: np.ndarray, tokens: int) -> TokenSplit:
    """The chosen documents, the last one cut so that there are no more than ``tokens`` tokens."""
    lengths = limited(np.diff(split.starts, append=len(split.tokens))[chosen], tokens)
    documents = [
        split.tokens[start : start + n] for start, n in zip(split.starts[chosen], lengths, strict=True)
    ]
    return TokenSplit(np.concatenate(documents), lengths.cumsum() - lengths, 0)


def padded(split: TokenSplit, end_id: int, row: int, rows: int) -> list[Batch]:
    """Batches of pieces in random order, one per row, as wide as the longest of them."""
    data = PaddedRows(split, end_id, row)
    order = np.random.default_rng(1).permutation(len(data))
    batches = []
    for start in range(0, len(order), rows):
        inputs, labels, numbers = stacked(data, order[start : start + rows])
        longest = int((numbers >= 0).sum(1).max())
        batches.append(Batch(inputs[:, :longest], labels[:, :longest]))
    return batches


def packed(split: TokenSplit, end_id: int, row: int, rows: int) -> list[Batch]:
    """Batches of full rows; the last one may have fewer of them, of which the last may end in padding."""
    data = PackedRows(split, end_id, row, seed=0)
    return [
        Batch(*part) for part in zip(*(e.split(rows) for e in stacked(data, range(len(data)))), strict=True)
    ]


def stacked(data: PackedRows | PaddedRows, indices: Iterable[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows as inputs, labels and numbers of documents."""
    inputs, labels, numbers = zip(*(data[int(index)] for index in indices), strict=True)
    return torch.stack(inputs), torch.stack(labels), torch.stack(numbers)


def check(model: GateworkForCausalLM, batch: Batch, end_id: int) -> None:
    """Both sides give the same mean loss for the pieces of a packed batch."""
    assert batch.seq_idx is not None
    pieces = []
    for inputs, labels, numbers in zip(*batch, strict=True):
        counts = torch.unique_consecutive(numbers, return_counts=True)[1].tolist()
        pieces += list(zip(inputs.split(counts), labels.split(counts), strict=True))
    pad = torch.nn.utils.rnn.pad_sequence
    rows = Batch(
        pad([inputs for inputs, _ in pieces], batch_first=True, padding_value=end_id),
        pad([labels for _, labels in pieces], batch_first=True, padding_value=-100),
    )
    with torch.no_grad():
        torch.testing.assert_close(loss(model, batch), loss(model, rows), rtol=1e-5, atol=1e-5)


def loss(model: GateworkForCausalLM, batch: Batch) -> Tensor:
    return model(batch.inputs, shift_labels=batch.labels, seq_idx=batch.seq_idx).loss


def train(model: GateworkForCausalLM, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]) -> None:
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def measure(split: TokenSplit, end_id: int, vocab_size: int, row: int, options: Any) -> dict[str, Any]:
    """Time both sides for every mixer at one row length."""
    lengths = np.diff(split.starts, append=len(split.tokens))
    chosen, share, whole = typical_draw(lengths, options.tokens, row, options.rows)
    documents = subset(split, chosen, options.tokens)
    sides = {
        "padded": padded(documents, end_id, row, options.rows),
        "packed": packed(documents, end_id, row, options.rows),
    }
    tokens = len(documents.tokens)
    for batches in sides.values():
        assert sum(int((batch.labels != -100).sum()) for batch in batches) == tokens
    result: dict[str, Any] = {"documents": len(chosen), "tokens": tokens, "useful": share, "split": whole}
    for name in options.mixers:
        torch.manual_seed(0)
        model = GateworkForCausalLM(
            GateworkConfig(
                vocab_size=vocab_size,
                hidden_size=options.dim,
                num_hidden_layers=options.layers,
                mixers=[{"name": name, **MIXERS.get(name, {})}],
                context_length=row,
            )
        )
        check(model, Batch(*(each[:2] for each in sides["packed"][0])), end_id)  # type: ignore[index]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        timings = take_turns(
            {side: partial(train, model, optimizer, batches) for side, batches in sides.items()},
            options.turns,
        )
        result[name] = {side: asdict(timing) for side, timing in timings.items()}
        result[name] |= {f"{side} tokens/s": tokens / timing.median * 1e3 for side, timing in timings.items()}
        result[name]["ratio"] = timings["padded"].median / timings["packed"].median
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", default="bpe", help="bpe (4,096 tokens, trained here) or bytes")
    parser.add_argument("--max-bytes", type=int, help="bytes of the corpus, all by default")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="tokens of a row"
    )
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens of the documents trained on")
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), help="mixers, each in all layers")
    parser.add_argument("--dim", type=int, default=128, help="channels")
    parser.add_argument("--layers", type=int, default=4, help="layers")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2, help="threads")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settle_allocator()
    corpus = load_tokens(tokenizer=options.tokenizer, max_bytes=options.max_bytes)
    tokenizer = corpus.tokenizer
    results = {
        row: measure(corpus.train, tokenizer.end_id, tokenizer.vocab_size, row, options)
        for row in options.lengths
    }
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{options.rows} rows, {options.dim} channels, {options.layers} layers, {options.threads} threads")
    for row, result in results.items():
        print(
            f"rows of {row}: {result['documents']} documents, {result['useful']:.0%} of the padded positions "
            f"useful, in the whole split {result['split']:.0%}"
        )
        for name in options.mixers:
            timing = result[name]
            sides = "  ".join(
                f"{side} {timing[side]['median'] / 1e3:6.2f} s ({timing[side]['fastest'] / 1e3:.2f} - "
                f"{timing[side]['slowest'] / 1e3:.2f}), {timing[f'{side} tokens/s']:8,.0f} tokens/s"
                for side in ("padded", "packed")
            )
            print(f"  {name:24} {sides}  ratio {timing['ratio']:5.2f}x")


if __name__ == "__main__":
    main()
