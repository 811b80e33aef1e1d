"""Golden adapter of Zoology's AR slices: hits, slice perplexities and the share of the gap."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework.data.ar_slices import BigramCounts, SliceScores, ar_hits, gap_share
from tests.golden.arguments import official
from tests.golden.case import Adapter, Case

SLICES = ("overall", "ar_hits", "other")


def repeated_tokens(tokens: Tensor) -> Tensor:
    """The tokens that occurred earlier in their row."""
    return (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(2)


def ar_slices(case: Case) -> dict[str, Tensor]:
    tokens = case.inputs["tokens"]
    a = official("AR slices", case.kwargs, max_train_count=1250)
    counts = BigramCounts.from_table(case.inputs["train_bigram_counts"].numpy())
    hits = ar_hits(tokens, counts, max_train_count=a["max_train_count"])
    labelled = torch.ones_like(hits)
    labelled[:, :1] = False
    outputs = {"ar_hit_mask": hits, "repeated_token_mask": repeated_tokens(tokens)}
    scores = {}
    for name, nll in case.inputs.items():
        if name.startswith("nll_"):
            model = name.removeprefix("nll_")
            scores[model] = SliceScores()
            scores[model].update(nll, hits, labelled)
            for part in SLICES:
                outputs[f"ppl/{model}/{part}"] = torch.tensor(scores[model].perplexity(part))
    share = gap_share(scores["attn"], scores["model"], cap=False)
    outputs["gap_fraction_ar"] = torch.tensor(float("nan") if share is None else share)
    return outputs


ADAPTERS: dict[str, Adapter] = {"zoology/ARSlices": ar_slices}
