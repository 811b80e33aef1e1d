"""Golden adapters of zoology's Mamba, RWKV-4 and test-time training."""

from __future__ import annotations

from typing import Any

from tests.golden.case import Adapter
from tests.golden.zoology_names import Options, Translate, renamed


def mamba(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "d_state": "state_dim",
        "d_conv": "conv_size",
        "expand": "expand",
        "conv_bias": "conv_bias",
        "bias": "bias",
    }
    options = dict(o)
    if (rank := options.pop("dt_rank", "auto")) != "auto":
        options["dt_rank"], names["dt_rank"] = rank, "dt_rank"
    # What enters initial values alone, and the choice of a kernel.
    ignored = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "use_fast_path", "device"}
    return "mamba", renamed(options, names, ignored)


def rwkv_time_mixer(o: Options) -> tuple[str, dict[str, Any]]:
    return "rwkv4", renamed(o, {}, {"l_max", "n_layer"})  # initial values, and the longest sequence


def ttt(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "num_heads": "num_heads",
        "mini_batch_size": "mini_batch_size",
        "ttt_base_lr": "base_rate",
        "rope_theta": "rope_theta",
        "use_gate": "gate",
        "share_qk": "share_qk",
        "conv_kernel": "conv_size",
    }
    # The convolution before the layer and its norm belong to a block that this class does not build.
    ignored = {"ttt_layer_type", "pre_conv", "rms_norm_eps", "scan_checkpoint_group_size"}
    kinds = {"linear": "ttt_linear", "mlp": "ttt_mlp"}
    return kinds[o.get("ttt_layer_type", "linear")], renamed(o, names, ignored)


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {"Mamba": mamba, "RWKVTimeMixer": rwkv_time_mixer, "TTT": ttt}

#: Cases that are no mixer.
ADAPTERS: dict[str, Adapter] = {}
