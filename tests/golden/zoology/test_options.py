"""The adapters with other arguments: none goes without effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.golden.case import Case
from tests.golden.maker import ADAPTERS, Maker, normal
from tests.golden.zoology.adapter import MIXERS as ALL
from tests.golden.zoology.options import DROPPED

Shapes = dict[str, tuple[int, ...]]

MIXERS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    # official class: what it needs, and values of its options that change something
    "MHA": ({"d_model": 12}, {"num_heads": [3], "bias": [False]}),
    "SlidingAttn": ({"d_model": 12, "block_size": 4}, {"block_size": [1, 2], "bias": [False]}),
    "BaseConv": (
        {"d_model": 12, "l_max": 16, "layer_idx": 1},
        {"kernel_size": [1, -1, [3, 2]], "use_act": [True]},
    ),
    "LongConvolution": ({"d_model": 12, "l_max": 16}, {"l_max": [18]}),
    "ImplicitLongConvolution": ({"d_model": 12, "l_max": 16}, {"d_emb": [5], "d_hidden": [7], "l_max": [18]}),
    "Hyena": (
        {"d_model": 12, "l_max": 16},
        {
            "filter_order": [8],
            "short_filter_order": [2],
            "emb_dim": [5],
            "bias": [False],
            "num_inner_mlps": [1],
            "linear_mixer": [True],
            "modulate": [False],
            "normalized": [True],
            "fast_decay_pct": [0.5],
            "slow_decay_pct": [2.0],
            "target": [0.1],
            "shift": [0.2],
            "l_max": [18],
        },
    ),
    "H3": (
        {"d_model": 12},
        {
            "d_state": [8, 16.0],
            "head_dim": [2],
            "l_max": [5],
            "kernel_args": [{"n_ssm": 3}, {"disc": "zoh"}],
        },
    ),
    "Based": (
        {"d_model": 12, "num_heads": 2, "num_key_value_heads": 2},
        {
            "feature_dim": [4],
            "eps": [0.1],
            "causal": [False],
            "feature_name": ["pos_elu", "cosformer", "performer", "all_poly", "identity", "a.b.SoftmaxDim"],
        },
    ),
    "GatedLinearAttention": (
        {"d_model": 16, "num_heads": 4},
        {
            "expand_k": [1.0],
            "expand_v": [0.5],
            "num_heads": [2],
            "num_kv_heads": [2],
            "feature_map": ["relu"],
            "use_short_conv": [True],
            "use_output_gate": [False],
            "gate_fn": ["sigmoid"],
            "elementwise_affine": [False],
            "norm_eps": [0.1],
            "gate_logit_normalizer": [2],
            "gate_low_rank_dim": [5],
            "clamp_min": [-0.01],
        },
    ),
    "DeltaNet": (
        {"d_model": 16},
        {
            "expand_k": [0.5],
            "expand_v": [2.0],
            "num_heads": [2],
            "use_beta": [False],
            "use_gate": [True],
            "conv_size": [2],
            "allow_neg_eigval": [True],
            "qk_activation": ["relu", "elu", "identity"],
            "qk_norm": ["sum"],
            "norm_eps": [0.1],
        },
    ),
    "GatedDeltaNet": (
        {"d_model": 12},
        {"expand_v": [1], "num_heads": [3], "use_gate": [False], "conv_size": [2], "norm_eps": [0.1]},
    ),
    "Mamba": (
        {"d_model": 12},
        {"d_state": [4], "d_conv": [2], "expand": [1], "dt_rank": [2], "conv_bias": [False], "bias": [True]},
    ),
    "Mamba2": (
        {"d_model": 16, "headdim": 8, "d_state": 8},
        {
            "d_state": [4],
            "d_conv": [2],
            "expand": [1],
            "headdim": [16],
            "d_ssm": [16],
            "ngroups": [2],
            "D_has_hdim": [True],
            "rmsnorm": [False],
            "norm_before_gate": [True],
            "dt_limit": [[0.0, 0.01]],
            "bias": [True],
            "conv_bias": [False],
        },
    ),
    "RWKVTimeMixer": ({"d_model": 12, "l_max": 16}, {}),
    "RWKV7Attention": (
        {"d_model": 128},
        {
            "head_dim": [32],
            "num_heads": [8],
            "decay_low_rank_dim": [4],
            "gate_low_rank_dim": [4],
            "a_low_rank_dim": [4],
            "elementwise_affine": [False],
            "norm_eps": [0.1],
        },
    ),
    "TTT": (
        {"d_model": 16},
        {
            "num_heads": [2],
            "ttt_layer_type": ["mlp"],
            "ttt_base_lr": [0.3],
            "mini_batch_size": [4],
            "use_gate": [True],
            "share_qk": [True],
            "rope_theta": [10.0],
        },
    ),
    "SparseAttention": (
        {
            "d_model": 16,
            "num_heads": 4,
            "sliding_window_size": 4,
            "compress_block_size": 4,
            "selection_block_size": 4,
            "num_selected_blocks": 1,
        },
        {
            "sliding_window_size": [2],
            "num_selected_blocks": [0, 2],
            "kv_heads": [2],
            "num_compressed_mem_kv": [2],
            "causal": [True],
            "norm": [False],
            "compress_mlp_expand_factor": [2.0],
        },
    ),
    "SigmoidLookups": (
        {"d_model": 12},
        {"num_heads": [3], "bias": [False], "n_lookups": [3], "selection_penalty": [10.0]},
    ),
}
OPTIONS = [
    (kind, {name: value})
    for kind, (_, options) in MIXERS.items()
    for name, values in options.items()
    for value in values
]


def run(maker: Maker, kind: str, kwargs: dict[str, Any]) -> tuple[Shapes, dict[str, Tensor]]:
    """Names and shapes of the parameters, and outputs in training, from numbers that are always the same."""

    class WithOwnWeights(Case):
        def load(self, model: nn.Module) -> nn.Module:
            torch.manual_seed(0)
            for tensor in model.double().parameters():
                nn.init.normal_(tensor)
            self.model = model.train()
            return model

    torch.manual_seed(1)
    maker.write(kwargs, mode="train", inputs={"x": normal(2, 16, kwargs.get("d_model", 12))})
    case = WithOwnWeights(maker.path, torch.float64)
    outputs = dict(ADAPTERS[f"zoology/{kind}"](case))
    return {name: tuple(p.shape) for name, p in case.model.named_parameters()}, outputs


def test_every_class_of_mixers_is_listed():
    assert MIXERS.keys() == ALL.keys()


@pytest.mark.parametrize(("kind", "option"), OPTIONS, ids=str)
def test_an_option_of_a_mixer_has_an_effect(maker, kind, option):
    needed, _ = MIXERS[kind]
    shapes, outputs = run(maker, kind, needed)
    other_shapes, others = run(maker, kind, needed | option)
    same = outputs.keys() == others.keys() and all(
        torch.equal(tensor, others[name]) for name, tensor in outputs.items()
    )
    assert shapes != other_shapes or not same


@pytest.mark.parametrize("kind", ["Based", "DeltaNet", "GatedDeltaNet", "Mamba", "RWKV7Attention", "TTT"])
def test_what_the_authors_give_to_classes_that_drop_it_is_taken(maker, kind):
    needed, _ = MIXERS[kind]
    _, outputs = run(maker, kind, needed)
    _, others = run(maker, kind, needed | dict.fromkeys(DROPPED, 1))
    assert torch.equal(outputs["y"], others["y"])
