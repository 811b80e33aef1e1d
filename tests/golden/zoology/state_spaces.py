"""Golden adapters of zoology's H3, Mamba, RWKV-4 and test-time training."""

from __future__ import annotations

from typing import Any

from tests.golden.arguments import REQUIRED, official, only
from tests.golden.zoology.options import DROPPED, Options, Translate, renamed


def h3(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "H3",
        o,
        unused=("attention_dropout",),
        d_state=64,
        l_max=None,
        head_dim=1,
        use_fast_fftconv=False,  # chooses a kernel
        dropout=0.0,  # has no effect there
        layer_idx=None,
        device=None,
        dtype=None,
        kernel_args={},
    )
    only("H3", a, device=None, dtype=None)
    # The first line are initial values and rates of learning alone.
    kernel = official(
        "H3's kernel",
        a["kernel_args"],
        measure="diag-lin",
        measure_args={},
        rank=1,
        dt_min=0.001,
        dt_max=0.1,
        deterministic=False,
        lr=None,
        verbose=False,
        mode="diag",
        n_ssm=None,
        disc="bilinear",
        real_type="exp",
        bandlimit=None,
        force_real=False,
    )
    only("H3's kernel", kernel, mode="diag", disc=("bilinear", "zoh"), real_type="exp")
    only("H3's kernel", kernel, bandlimit=None, force_real=False)
    return "h3", {
        "state_dim": int(a["d_state"]),  # official configurations divide with /
        **renamed(a, head_dim="head_dim", max_length="l_max"),
        **renamed(kernel, num_ssm="n_ssm", discretization="disc"),
    }


def mamba(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "Mamba",
        o,
        unused=DROPPED,
        d_state=16,
        d_conv=4,
        expand=2,
        dt_rank="auto",
        dt_min=0.001,
        dt_max=0.1,
        dt_init="random",
        dt_scale=1.0,
        dt_init_floor=1e-4,
        conv_bias=True,
        bias=False,
        use_fast_path=True,  # chooses a kernel
        device=None,
        dtype=None,
    )
    only("Mamba", a, device=None, dtype=None)
    names = {"state_dim": "d_state", "conv_size": "d_conv", "expand": "expand"}
    rank = None if a["dt_rank"] == "auto" else int(a["dt_rank"])
    return "mamba", {"dt_rank": rank, **renamed(a, **names, conv_bias="conv_bias", bias="bias")}


def mamba2(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "Mamba2",
        o,
        d_state=128,
        d_conv=4,
        expand=2,
        headdim=64,
        d_ssm=None,
        ngroups=1,
        D_has_hdim=False,
        rmsnorm=True,
        norm_before_gate=False,
        dt_limit=(0.0, float("inf")),
        bias=False,
        conv_bias=True,
        layer_idx=None,
        # Initial values.
        conv_init=None,
        A_init_range=(1, 16),
        dt_min=0.001,
        dt_max=0.1,
        dt_init_floor=1e-4,
        # Kernels, and what nothing there uses.
        chunk_size=256,
        use_mem_eff_path=False,
        use_fast_path=True,
        num_feature_maps=1,
        process_group=None,
        sequence_parallel=True,  # has no effect without a group
        device=None,
        dtype=None,
    )
    only("Mamba2", a, process_group=None, device=None, dtype=None)
    low, high = a["dt_limit"]
    return "mamba2", {
        "dt_limit": (float(low), float(high)),
        **renamed(a, state_dim="d_state", conv_size="d_conv", expand="expand", head_dim="headdim"),
        **renamed(a, ssm_dim="d_ssm", num_groups="ngroups", skip_per_channel="D_has_hdim", norm="rmsnorm"),
        **renamed(a, norm_before_gate="norm_before_gate", bias="bias", conv_bias="conv_bias"),
    }


def rwkv_time_mixer(o: Options) -> tuple[str, dict[str, Any]]:
    # The longest sequence, and what initial values follow.
    official("RWKVTimeMixer", o, l_max=REQUIRED, n_layer=12, layer_idx=-1)
    return "rwkv4", {}


def ttt(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "TTT",
        o,
        unused=(*DROPPED, "scan_checkpoint_group_size"),
        layer_idx=0,
        num_heads=4,
        ttt_layer_type="linear",
        ttt_base_lr=1.0,
        mini_batch_size=16,
        use_gate=False,
        share_qk=False,
        conv_kernel=4,
        rope_theta=10000.0,
        # Of a block around the layer, which this class does not build.
        pre_conv=False,
        rms_norm_eps=1e-6,
    )
    only("TTT", a, ttt_layer_type=("linear", "mlp"))
    return f"ttt_{a['ttt_layer_type']}", {
        **renamed(a, num_heads="num_heads", mini_batch_size="mini_batch_size", base_rate="ttt_base_lr"),
        **renamed(a, rope_theta="rope_theta", gate="use_gate", share_qk="share_qk", conv_size="conv_kernel"),
    }


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    "H3": h3,
    "Mamba": mamba,
    "Mamba2": mamba2,
    "RWKVTimeMixer": rwkv_time_mixer,
    "TTT": ttt,
}
