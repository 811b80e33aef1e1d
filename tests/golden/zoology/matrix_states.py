"""Golden adapters of zoology's mixers with a matrix state and feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatework.layers.sequence.feature_maps import FeatureMap
from gatework.layers.sequence.gated_linear_attention import ACTIVATIONS
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention
from tests.golden.arguments import official, only
from tests.golden.case import Adapter, Case
from tests.golden.zoology.options import DROPPED, Options, Translate, mixer_adapter, renamed

#: Official classes of feature maps, and the names that Based has for some of them.
FEATURE_MAPS = {
    "none": "identity",
    "FeatureMap": "identity",
    "Identity": "identity",
    "PosELU": "elu",
    "pos_elu": "elu",
    "ReLU": "relu",
    "Square": "square",
    "SquaredMap": "squared",
    "TaylorExp": "taylor",
    "taylor_exp": "taylor",
    "CosFormerFeatureMap": "cosformer",
    "PerformerFeatureMap": "performer",
    "AllPolyMap": "all_poly",
    "ExpDim": "exp_dim",
    "ExpMaxNorm": "exp_max_norm",
    "SoftmaxDim": "softmax_dim",
    "SoftmaxDimHalfspace": "softmax_dim",
    "ExpSumNorm": "exp_sum_norm",
    "ExpSumNormHalfspace": "exp_sum_norm",
}
#: Those with features of ``x`` and of ``-x``; they and two more multiply their input by ``temp``.
SIGNED = {"exp_dim", "exp_max_norm", "softmax_dim", "exp_sum_norm"}


def feature_map(path: str, kwargs: Options, input_dim: int) -> tuple[str, dict[str, Any]]:
    """Our name of a feature map and its options, except for ``input_dim`` and cosFormer's ``max_length``."""
    theirs = path.rsplit(".", 1)[-1]
    name = FEATURE_MAPS.get(theirs, theirs)
    # All of them take all of these, and drop what they do not use.
    a = official(
        theirs,
        kwargs,
        input_dim=input_dim,
        temp=None,
        head_dim_idx=-1,
        eps=1e-12,
        fullspace=True,
        expanded_dim=256,
        output_dim=None,
        init="randn",  # initial values
        learnable=True,  # has no effect on what is computed
        act_fun="relu",
    )
    only(theirs, a, input_dim=input_dim)
    if name in SIGNED | {"taylor"}:
        only(theirs, a, head_dim_idx=(-1, 3))
    if name in SIGNED | {"relu"}:
        only(theirs, a, eps=1e-12)
    if name == "cosformer":
        only(theirs, a, act_fun="relu")  # with another one it does not run officially
    options: dict[str, Any] = {}
    if name in SIGNED | {"elu", "relu"} and theirs != "ExpSumNormHalfspace" and a["temp"] is not None:
        options["input_scale"] = a["temp"]
    if name == "performer":
        options["num_features"] = a["expanded_dim"]
    if name == "all_poly":
        options["num_features"] = a["output_dim"]
    if theirs.endswith("Halfspace") or (name in ("exp_dim", "exp_max_norm") and not a["fullspace"]):
        options["both_signs"] = False
    return name, options


class FeatureMaps(nn.ModuleDict):
    """All maps of a file as one module, whose parameters have the authors' names."""


def feature_maps(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    maps = FeatureMaps()
    for key, entry in case.kwargs.items():
        name, options = feature_map(entry["class"], entry["kwargs"], x.shape[-1])
        maps[key] = FeatureMap(name, x.shape[-1], max_length=max(x.shape[2], 1), **options)
    case.load(maps)
    return {key: phi(x) for key, phi in maps.items()}


def based(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "Based",
        o,
        unused=DROPPED,
        l_max=2048,
        feature_dim=16,
        num_key_value_heads=12,
        num_heads=12,
        feature_name="taylor_exp",
        feature_kwargs={},
        eps=1e-12,
        causal=True,
        apply_rotary=False,
        rope_theta=10000.0,  # of the rotation
        train_view="linear",
        sequence_length=None,  # ours: cosFormer's angles depend on the length of the input
    )
    # What else is not here does not run in the official code either.
    only("Based", a, num_key_value_heads=a["num_heads"], apply_rotary=False)
    only("Based", a, train_view=("linear", "quadratic"))
    ours = renamed(a, num_heads="num_heads", feature_dim="feature_dim", eps="eps")
    # That view is causal whatever the flag says.
    ours["is_causal"] = a["causal"] or a["train_view"] == "quadratic"
    name, of_map = feature_map(a["feature_name"], a["feature_kwargs"], a["feature_dim"])
    if name == "taylor":
        return "based", ours
    if name == "cosformer":
        of_map["max_length"] = a["sequence_length"]
    return "linear_attention", {**ours, "feature_map": name, **of_map}


def based_case(case: Case) -> Mapping[str, Tensor]:
    """A case of Based, whose cosFormer features are told the length of the input."""
    length = case.inputs["x"].shape[1]
    return mixer_adapter(lambda options: based({**options, "sequence_length": length}))(case)


def gla(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "GatedLinearAttention",
        o,
        mode="chunk",  # chooses a kernel
        expand_k=0.5,
        expand_v=1.0,
        num_heads=4,
        num_kv_heads=None,
        feature_map=None,
        use_short_conv=False,
        conv_size=4,
        conv_bias=False,  # nothing uses it
        use_output_gate=True,
        gate_fn="swish",
        elementwise_affine=True,
        norm_eps=1e-5,
        gate_logit_normalizer=16,
        gate_low_rank_dim=16,
        clamp_min=None,
        fuse_norm=True,  # chooses a kernel
        layer_idx=None,
    )
    only("GatedLinearAttention", a, mode=("chunk", "fused_recurrent", "fused_chunk"))
    only("GatedLinearAttention", a, feature_map=(None, *ACTIVATIONS))
    if a["use_output_gate"]:
        only("GatedLinearAttention", a, gate_fn=tuple(ACTIVATIONS))
    return "gated_linear_attention", {
        "conv_size": a["conv_size"] if a["use_short_conv"] else 0,
        "output_gate": a["gate_fn"] if a["use_output_gate"] else None,
        **renamed(a, num_heads="num_heads", num_kv_heads="num_kv_heads", expand_k="expand_k"),
        **renamed(a, expand_v="expand_v", feature_map="feature_map", norm_affine="elementwise_affine"),
        **renamed(a, norm_eps="norm_eps", gate_logit_normalizer="gate_logit_normalizer"),
        **renamed(a, gate_rank="gate_low_rank_dim", min_log_decay="clamp_min"),
    }


def delta_net(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "DeltaNet",
        o,
        unused=DROPPED,
        mode="chunk",  # chooses a kernel
        expand_k=1.0,
        expand_v=1.0,
        num_heads=4,
        use_beta=True,
        use_gate=False,
        use_short_conv=True,
        conv_size=4,
        conv_bias=False,  # nothing uses it
        allow_neg_eigval=False,
        qk_activation="silu",
        qk_norm="l2",
        norm_eps=1e-5,
    )
    # What else is not here does not run in the official code either.
    only("DeltaNet", a, mode=("chunk", "fused_recurrent"), use_short_conv=True)
    only("DeltaNet", a, qk_activation=("silu", "relu", "elu", "identity"), qk_norm=("l2", "sum"))
    return "delta_net", {
        **renamed(a, num_heads="num_heads", expand_k="expand_k", expand_v="expand_v", use_beta="use_beta"),
        **renamed(a, output_gate="use_gate", conv_size="conv_size", allow_neg_eigval="allow_neg_eigval"),
        **renamed(a, qk_activation="qk_activation", qk_norm="qk_norm", norm_eps="norm_eps"),
    }


def gated_delta_net(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "GatedDeltaNet",
        o,
        unused=(*DROPPED, "head_dim", "use_beta"),
        expand_v=2,
        num_heads=6,
        mode="chunk",  # chooses a kernel
        use_gate=True,
        use_short_conv=True,
        conv_size=4,
        conv_bias=False,  # nothing uses it
        norm_eps=1e-5,
    )
    # What else is not here does not run in the official code either.
    only("GatedDeltaNet", a, mode=("chunk", "fused_recurrent"), use_short_conv=True)
    names = {"num_heads": "num_heads", "expand_v": "expand_v", "output_gate": "use_gate"}
    return "gated_delta_net", renamed(a, **names, conv_size="conv_size", norm_eps="norm_eps")


def rwkv7(o: Options) -> tuple[str, dict[str, Any]]:
    a = official(
        "RWKV7Attention",
        o,
        unused=DROPPED,
        mode="chunk",  # chooses a kernel
        head_dim=64 if o.get("num_heads") is None else None,  # officially an error with num_heads
        num_heads=None,
        decay_low_rank_dim=64,
        gate_low_rank_dim=128,
        a_low_rank_dim=64,
        v_low_rank_dim=16,  # of weights that stay unused
        elementwise_affine=True,
        norm_eps=1e-5,
    )
    only("RWKV7Attention", a, mode=("chunk", "fused_recurrent"))
    if (a["head_dim"] is None) == (a["num_heads"] is None):
        raise ValueError("RWKV7Attention: give one of head_dim and num_heads")
    return "rwkv7", {
        **renamed(a, num_heads="num_heads", head_dim="head_dim", decay_rank="decay_low_rank_dim"),
        **renamed(a, rate_rank="a_low_rank_dim", gate_rank="gate_low_rank_dim"),
        **renamed(a, norm_affine="elementwise_affine", norm_eps="norm_eps"),
    }


def retention(case: Case) -> dict[str, Tensor]:
    official("naive_retention", case.kwargs)
    q, k, v = (case.inputs[name] for name in "qkv")
    log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(q.shape[1], dtype=q.dtype))))
    o, _ = gated_linear_attention(q, k, v, log_decay[:, None].expand(q.shape[:3]))
    return {"o": o}


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    "Based": based,
    "DeltaNet": delta_net,
    "GatedLinearAttention": gla,
    "GatedDeltaNet": gated_delta_net,
    "RWKV7Attention": rwkv7,
}

#: Cases that are no mixer, or need more than the options.
ADAPTERS: dict[str, Adapter] = {
    "zoology/Based": based_case,
    "zoology/FeatureMaps": feature_maps,
    "zoology/Retention": retention,
}
