"""Golden adapters of zoology's attention in windows and of chosen keys, and of its look-ups."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import gatework
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Adapter, Case
from tests.golden.zoology.options import DROPPED, Options, Translate, mixer_adapter, renamed


def mha(o: Options) -> tuple[str, dict[str, Any]]:
    a = official("MHA", o, num_heads=1, bias=True, dropout=0.0, layer_idx=None)
    return "attention", renamed(a, num_heads="num_heads", qkv_bias="bias", dropout="dropout")


def sliding_attn(o: Options) -> tuple[str, dict[str, Any]]:
    unused = (*DROPPED, "num_heads")  # it has one head
    a = official("SlidingAttn", o, unused=unused, block_size=256, bias=True, dropout=0.0)
    return "sliding_window", renamed(a, window_size="block_size", qkv_bias="bias", dropout="dropout")


def nsa(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "SparseAttention",
        o,
        num_heads=REQUIRED,
        sliding_window_size=REQUIRED,
        compress_block_size=REQUIRED,
        selection_block_size=REQUIRED,
        num_selected_blocks=REQUIRED,
        kv_heads=None,
        num_compressed_mem_kv=1,
        causal=False,
        norm=True,
        use_triton_kernel=False,
        interpolated_importance_score=False,  # is stored and never used
        query_heads_share_selected_kv=True,
        compress_mlp=None,  # is replaced by the default one
        compress_mlp_expand_factor=1.0,
        layer_idx=-1,
    )
    only("SparseAttention", a, use_triton_kernel=False)
    if a["num_selected_blocks"]:
        # Two sizes run only where no block is selected, and then the second has no effect.
        only("SparseAttention", a, selection_block_size=a["compress_block_size"])
    return "nsa", {
        **renamed(a, num_heads="num_heads", num_kv_heads="kv_heads", window_size="sliding_window_size"),
        **renamed(a, block_size="compress_block_size", num_selected_blocks="num_selected_blocks"),
        **renamed(a, num_memory="num_compressed_mem_kv", norm="norm"),
        **renamed(
            a, heads_share_blocks="query_heads_share_selected_kv", compress_ratio="compress_mlp_expand_factor"
        ),
        # The flag reaches the window only: the other branches are causal whatever it says.
        "compat": None if a["causal"] else "official",
    }


def sigmoid_lookups(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "SigmoidLookups",
        o,
        num_heads=1,
        bias=True,
        dropout=0.0,
        layer_idx=None,
        selection_penalty=0.001,
        n_lookups=None,
    )
    ours = renamed(a, num_heads="num_heads", qkv_bias="bias", dropout="dropout")
    ours |= renamed(a, num_lookups="n_lookups", penalty="selection_penalty")
    return "sigmoid_lookups", {**ours, "compat": "official"}


def with_auxiliary_loss(case: Case) -> dict[str, Tensor]:
    """The look-ups, and in training also what they add to the loss."""
    outputs = dict(mixer_adapter(sigmoid_lookups)(case))
    assert isinstance(case.model, gatework.layers.sequence.mixer.Mixer)
    loss = case.model.auxiliary_loss(case.inputs["x"])
    return outputs if loss is None else {**outputs, "aux_loss": loss}


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    "MHA": mha,
    "SlidingAttn": sliding_attn,
    "SparseAttention": nsa,
    "SigmoidLookups": sigmoid_lookups,
}

#: Cases that are more than a mixer.
ADAPTERS: dict[str, Adapter] = {"zoology/SigmoidLookups": with_auxiliary_loss}
