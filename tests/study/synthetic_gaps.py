"""Study directories on text with AR hits told from other tokens, and recall studies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from gatework.study.spec import RunSpec
from tests.study.synthetic_studies import BITS, TRAINING, result_of, run_spec, write_study

SHARE = 0.064
MAX_TRAIN_COUNT = 12
HYBRID = [{"name": "base_conv"}, {"name": "attention"}]
# label: layers, nats per AR hit, nats per other token, accuracy on recall
GAPS: dict[str, tuple[list[dict[str, Any]], float, float, float]] = {
    "attention": ([{"name": "attention"}], 0.77, 2.52, 0.99),
    "base_conv+attention": (HYBRID, 0.86, 2.522, 0.98),
    "base_conv": ([{"name": "base_conv"}], 2.4, 2.62, 0.45),
    "hyena": ([{"name": "hyena"}], 1.61, 2.51, 0.6),
    "h3": ([{"name": "h3"}], 1.91, 2.53, 0.55),
    "long_conv": ([{"name": "long_conv"}], 3.24, 2.80, 0.08),
    "rwkv4": ([{"name": "rwkv4"}], 1.74, 2.53, 0.5),
    "mamba2": ([{"name": "mamba2"}], 1.1, 2.51, 0.2),
    "gated_delta_net": ([{"name": "gated_delta_net"}], 0.75, 2.45, 0.95),
    "gated_linear_attention": ([{"name": "gated_linear_attention"}], 1.2, 2.53, 0.8),
}


def gap_study(
    directory: Path,
    *,
    mixers: Sequence[str] = tuple(GAPS),
    seeds: Sequence[int] = (0, 1, 2),
    widths: Sequence[int] = (128,),
    diverged: Sequence[str] = ("gated_linear_attention",),
    slices: bool = True,
    layers: Mapping[str, list[dict[str, Any]]] | None = None,
) -> Path:
    """Ten mixers on text; one seed of gated_linear_attention diverged, and gated_delta_net beats attention.

    Widths up to 64 lose 0.2 nats on AR hits; ``layers`` stand in for those of the table.
    """
    runs, results = [], []
    for mixer in mixers:
        own, hits, other, _ = GAPS[mixer]
        for width in widths:
            for seed in seeds:
                chosen = (layers or {}).get(mixer, own)
                options = {"corpus": "stdlib", "tokenizer": "bpe"}
                run = RunSpec("text", options, "python source", mixer, chosen, width, 0.002, seed, TRAINING)
                runs.append(run)
                if mixer in diverged and seed == seeds[-1]:
                    message = "loss 55.0 at step 300"
                    results.append(result_of(run, 2.4, status="diverged", message=message))
                    continue
                shift = 0.004 * (seed % 3 - 1)
                losses = {"ar_hits": hits + 10 * shift + 0.2 * (width <= 64), "other": other + shift}
                results.append(_sliced(run, losses, slices=slices))
    return write_study(directory, runs, results, quality=BITS, title="Where do text models lose?")


def _sliced(run: RunSpec, losses: Mapping[str, float], *, slices: bool) -> dict:
    loss = SHARE * losses["ar_hits"] + (1 - SHARE) * losses["other"]
    bits = loss / log(2) / 3.5
    result = result_of(run, bits)
    result["metrics"] |= {"loss": loss, "quality": bits}
    if slices:
        result["metrics"] |= {"slices": losses, "ar_share": SHARE, "max_train_count": MAX_TRAIN_COUNT}
    return result


def companion_study(
    directory: Path,
    *,
    mixers: Sequence[str] = tuple(GAPS),
    widths: Sequence[int] = (128,),
    seeds: Sequence[int] = (0, 1),
) -> Path:
    """The recall study beside a study on text: two settings, of which the second is harder."""
    runs, results = [], []
    for mixer in mixers:
        for setting, factor in (("N=64, 4 pairs", 1.0), ("N=128, 16 pairs", 0.9)):
            for width in widths:
                for seed in seeds:
                    run = run_spec("recall", setting, mixer, width, 0.003, seed)
                    runs.append(run)
                    results.append(
                        result_of(run, GAPS[mixer][3] * factor - 0.02 * seed - 0.1 * (width <= 64))
                    )
    return write_study(directory / "recall", runs, results, title="Recall of the same mixers")
