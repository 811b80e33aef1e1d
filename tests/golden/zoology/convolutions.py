"""Golden adapters of zoology's convolutions."""

from __future__ import annotations

from typing import Any

from tests.golden.arguments import REQUIRED, official, only
from tests.golden.zoology.options import DROPPED, Options, Translate, renamed


def base_conv(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "BaseConv",
        o,
        unused=DROPPED,
        l_max=REQUIRED,
        kernel_size=3,
        layer_idx=None,
        implicit_long_conv=True,
        use_act=False,
    )
    size, index = a["kernel_size"], a["layer_idx"]
    if isinstance(size, list):
        if index is None or index >= len(size):
            raise ValueError(f"BaseConv: kernel_size={size} has no entry for layer_idx={index}")
        size = size[index]
    ours = renamed(a, max_length="l_max", implicit="implicit_long_conv", activation="use_act")
    return "base_conv", {"kernel_size": size, **ours}


def long_conv(o: Options) -> tuple[str, dict[str, Any]]:
    a = official("LongConvolution", o, unused=DROPPED, l_max=REQUIRED)
    return "long_conv", renamed(a, max_length="l_max")


def implicit_long_conv(o: Options) -> tuple[str, dict[str, Any]]:
    a = official("ImplicitLongConvolution", o, unused=DROPPED, l_max=REQUIRED, d_emb=3, d_hidden=16)
    return "implicit_long_conv", renamed(a, max_length="l_max", emb_dim="d_emb", hidden_dim="d_hidden")


def hyena(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "Hyena",
        o,
        l_max=REQUIRED,
        filter_order=64,
        num_heads=1,
        num_blocks=1,
        outer_mixing=False,  # nothing uses it
        dropout=0.0,
        filter_dropout=0.0,  # nothing uses it
        short_filter_order=3,
        return_state=False,
        bidirectional=False,
        layer_idx=None,
        # Of the filter and its window.
        channels=1,  # nothing uses it
        emb_dim=3,
        w=1,
        bias=True,
        num_inner_mlps=2,
        linear_mixer=False,
        modulate=True,
        normalized=False,
        fast_decay_pct=0.3,
        slow_decay_pct=1.5,
        target=1e-2,
        shift=0.0,
        # Hints to an optimizer.
        lr=1e-3,
        lr_pos_emb=1e-5,
        wd=0,
        modulation_lr=0.0,
    )
    # The first three run only at these values in the official code, the fourth makes a pair of the output.
    only("Hyena", a, num_heads=1, num_blocks=1, bidirectional=False, return_state=False)
    return "hyena", {
        **renamed(a, max_length="l_max", short_filter_order="short_filter_order"),
        **renamed(a, filter_order="filter_order", emb_dim="emb_dim", num_inner_mlps="num_inner_mlps"),
        **renamed(a, sine_frequency="w", linear_filter="linear_mixer", modulate="modulate", shift="shift"),
        **renamed(a, fast_decay="fast_decay_pct", slow_decay="slow_decay_pct", decay_target="target"),
        **renamed(a, normalized="normalized", filter_bias="bias"),
    }


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    "BaseConv": base_conv,
    "LongConvolution": long_conv,
    "ImplicitLongConvolution": implicit_long_conv,
    "Hyena": hyena,
}
