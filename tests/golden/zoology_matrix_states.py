"""Golden adapters of zoology's mixers with a matrix state and feature maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatework.layers.sequence.feature_maps import FeatureMap
from gatework.ops.recurrence.linear_recurrence import gated_linear_attention
from tests.golden.case import Adapter, Case
from tests.golden.zoology_names import Options, Translate, mixer_adapter, renamed

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
#: Those that multiply their input by the option ``temp``, except in the class ExpSumNormHalfspace.
SCALED = {"elu", "relu", "exp_dim", "exp_max_norm", "softmax_dim", "exp_sum_norm"}


def feature_map(path: str, kwargs: Options) -> tuple[str, dict[str, Any]]:
    """Our name of a feature map and its options, except for ``input_dim`` and cosFormer's ``max_length``."""
    official = path.rsplit(".", 1)[-1]
    name = FEATURE_MAPS.get(official, official)
    assert kwargs.get("head_dim_idx", -1) in (-1, 3), "features of another axis than the last"
    assert kwargs.get("eps", 1e-12) == 1e-12 or name not in SCALED - {"elu"}, "the floor of features is fixed"
    assert kwargs.get("act_fun", "relu") == "relu", "cosFormer with another one does not run officially"
    options: dict[str, Any] = {}
    if name in SCALED and official != "ExpSumNormHalfspace" and kwargs.get("temp") is not None:
        options["input_scale"] = kwargs["temp"]
    if name == "performer" and "expanded_dim" in kwargs:
        options["num_features"] = kwargs["expanded_dim"]
    if name == "all_poly":
        options["num_features"] = kwargs.get("output_dim")
    if official.endswith("Halfspace") or (
        name in ("exp_dim", "exp_max_norm") and not kwargs.get("fullspace", True)
    ):
        options["both_signs"] = False
    return name, options


class FeatureMaps(nn.ModuleDict):
    """All maps of a file as one module, whose parameters have the authors' names."""

    def convert_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(state_dict)


def feature_maps(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    maps = FeatureMaps()
    for key, entry in case.kwargs.items():
        name, options = feature_map(entry["class"], entry["kwargs"])
        maps[key] = FeatureMap(name, x.shape[-1], max_length=max(x.shape[2], 1), **options)
    case.load(maps)
    return {key: phi(x) for key, phi in maps.items()}


def based(o: Options) -> tuple[str, dict[str, Any]]:
    options = {"num_heads": 12, "num_key_value_heads": 12, "feature_name": "taylor_exp", **o}
    assert options["num_heads"] == options["num_key_value_heads"], "others do not run in the official code"
    assert not options.get("apply_rotary", False), "this does not run in the official code"
    kwargs = options.get("feature_kwargs", {})
    assert kwargs.get("input_dim", options.get("feature_dim", 16)) == options.get("feature_dim", 16)
    names = {"num_heads": "num_heads", "feature_dim": "feature_dim", "causal": "is_causal", "eps": "eps"}
    ignored = {"l_max", "num_key_value_heads", "feature_name", "feature_kwargs", "rope_theta", "apply_rotary"}
    if options.pop("train_view", "linear") == "quadratic":
        options["causal"] = True  # that view is causal whatever the flag says
    ours = renamed(options, names, ignored | {"sequence_length"})
    name, of_map = feature_map(options["feature_name"], kwargs)
    if name == "taylor":
        return "based", ours
    if name == "cosformer":
        assert "sequence_length" in options, "cosFormer's angles depend on the length of the input"
        of_map["max_length"] = options["sequence_length"]
    return "linear_attention", {**ours, "feature_map": name, **of_map}


def based_case(case: Case) -> Mapping[str, Tensor]:
    """A case of Based, whose cosFormer features are told the length of the input."""
    length = case.inputs["x"].shape[1]
    return mixer_adapter(lambda options: based({**options, "sequence_length": length}))(case)


#: Options of delta rules that choose a kernel, or that the official constructors take and do not use.
OF_KERNELS = {"mode", "conv_bias", "use_short_conv"}


def delta_net(o: Options) -> tuple[str, dict[str, Any]]:
    assert o.get("use_short_conv", True), "this does not run in the official code"
    names = {
        "num_heads": "num_heads",
        "expand_k": "expand_k",
        "expand_v": "expand_v",
        "use_beta": "use_beta",
        "use_gate": "output_gate",
        "conv_size": "conv_size",
        "allow_neg_eigval": "allow_neg_eigval",
        "qk_activation": "qk_activation",
        "qk_norm": "qk_norm",
        "norm_eps": "norm_eps",
    }
    return "delta_net", renamed({"num_heads": 4, **o}, names, OF_KERNELS)


def gated_delta_net(o: Options) -> tuple[str, dict[str, Any]]:
    assert o.get("use_short_conv", True), "this does not run in the official code"
    names = {
        "num_heads": "num_heads",
        "expand_v": "expand_v",
        "use_gate": "output_gate",
        "conv_size": "conv_size",
        "norm_eps": "norm_eps",
    }
    ignored = OF_KERNELS | {"head_dim", "use_beta"}  # swallowed by the official class
    return "gated_delta_net", renamed({"num_heads": 6, **o}, names, ignored)


def rwkv7(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "num_heads": "num_heads",
        "head_dim": "head_dim",
        "decay_low_rank_dim": "decay_rank",
        "a_low_rank_dim": "rate_rank",
        "gate_low_rank_dim": "gate_rank",
        "elementwise_affine": "norm_affine",
        "norm_eps": "norm_eps",
    }
    return "rwkv7", renamed(o, names, {"mode", "v_low_rank_dim"})


def retention(case: Case) -> dict[str, Tensor]:
    assert not case.kwargs, "the official function has no options"
    q, k, v = (case.inputs[name] for name in "qkv")
    log_decay = torch.log1p(-(2.0 ** (-5 - torch.arange(q.shape[1], dtype=q.dtype))))
    o, _ = gated_linear_attention(q, k, v, log_decay[:, None].expand(q.shape[:3]))
    return {"o": o}


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    "Based": based,
    "DeltaNet": delta_net,
    "GatedDeltaNet": gated_delta_net,
    "RWKV7Attention": rwkv7,
}

#: Cases that are no mixer, or need more than the options.
ADAPTERS: dict[str, Adapter] = {
    "zoology/Based": based_case,
    "zoology/FeatureMaps": feature_maps,
    "zoology/Retention": retention,
}
