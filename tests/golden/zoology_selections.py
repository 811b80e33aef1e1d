"""Golden adapters of zoology's sparse attention and look-ups."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import gatework
from tests.golden.case import Adapter, Case
from tests.golden.zoology_names import Options, Translate, mixer_adapter, renamed


def nsa(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "num_heads": "num_heads",
        "kv_heads": "num_kv_heads",
        "sliding_window_size": "window_size",
        "compress_block_size": "block_size",
        "num_selected_blocks": "num_selected_blocks",
        "num_compressed_mem_kv": "num_memory",
        "norm": "norm",
        "query_heads_share_selected_kv": "heads_share_blocks",
        "compress_mlp_expand_factor": "compress_ratio",
    }
    # Two sizes run only where no block is selected, and then the second has no effect.
    assert o["compress_block_size"] == o["selection_block_size"] or o["num_selected_blocks"] == 0
    assert not o.get("use_triton_kernel", False), "kernels for GPUs are not ours"
    # The score is stored and never used; the network that is passed is replaced by the default one.
    ignored = {
        "causal",
        "selection_block_size",
        "use_triton_kernel",
        "interpolated_importance_score",
        "compress_mlp",
    }
    # The flag reaches the window only: the other branches are causal whatever it says.
    return "nsa", {**renamed(o, names, ignored), "compat": None if o.get("causal", False) else "official"}


def sigmoid_lookups(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "num_heads": "num_heads",
        "bias": "qkv_bias",
        "n_lookups": "num_lookups",
        "selection_penalty": "penalty",
    }
    return "sigmoid_lookups", {**renamed(o, names), "compat": "official"}


def with_auxiliary_loss(translate: Translate) -> Adapter:
    """The mixer, and in training also what it adds to the loss."""

    def adapter(case: Case) -> dict[str, Tensor]:
        outputs = mixer_adapter(translate)(case)
        assert isinstance(case.model, gatework.layers.sequence.mixer.Mixer)
        loss = case.model.auxiliary_loss(case.inputs["x"])
        return outputs if loss is None else {**outputs, "aux_loss": loss}

    return adapter


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {"SparseAttention": nsa, "SigmoidLookups": sigmoid_lookups}

#: Cases that are more than a mixer.
ADAPTERS: dict[str, Adapter] = {"zoology/SigmoidLookups": with_auxiliary_loss(sigmoid_lookups)}
