"""What an adapter cannot express is refused by name; nothing is dropped in silence."""

from __future__ import annotations

import pytest
import torch

from tests.golden import systems
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Case
from tests.golden.maker import ADAPTERS


@pytest.mark.parametrize("kind", sorted(kind for kind in ADAPTERS if kind != "zoology/FeatureMaps"))
def test_an_unknown_argument_is_refused(maker, kind):
    own = [file for file, entry in systems.OWN_INDEX.items() if entry["kind"] == kind]
    case = Case(systems.OWN / own[0], torch.float64)
    unknown = {"made_up": 1}
    if isinstance(case.kwargs, list):
        case.kwargs = [call | unknown for call in case.kwargs]
    elif kind == "zoology/TaskVariants":
        case.kwargs = {name: call | unknown for name, call in case.kwargs.items()}
    else:
        case.kwargs = case.kwargs | unknown
    with pytest.raises(TypeError, match="made_up"):
        ADAPTERS[kind](case)


@pytest.mark.parametrize(
    ("kind", "option", "message"),
    [
        ("halonet/HaloAttn", {"dtype": "float16"}, "HaloAttn: dtype='float16' is not here"),
        ("longca_bench/BlockSparse", {"num_blocks": 7}, "num_blocks=7 must divide seqlen=64"),
        ("longca_bench/BlockSparse", {"num_kv_heads": 4}, "num_kv_heads=4 is not here, only 2"),
        ("longca_bench/StaticMasks", {"masks": {"hash_sparse": {}}}, "'hash_sparse' is not here"),
        ("seer_attention/DistillAndBlockSparse", {"num_key_value_groups": 4}, "num_key_value_groups=4"),
        ("sigmoid_attention/FlashSigmoid", {"dropout_p": 0.1}, r"dropout_p=0\.1 is not here"),
        ("zoology/Hyena", {"num_heads": 2}, "Hyena: num_heads=2 is not here, only 1"),
        ("zoology/Hyena", {"bidirectional": True}, "bidirectional=True"),
        ("zoology/H3", {"kernel_args": {"mode": "ema"}}, "mode='ema'"),
        ("zoology/H3", {"kernel_args": {"disc": "dss"}}, "disc='dss'"),
        ("zoology/H3", {"kernel_args": {"real_type": "relu"}}, "real_type='relu'"),
        ("zoology/Based", {"train_view": "cubic"}, "train_view='cubic'"),
        ("zoology/Based", {"apply_rotary": True}, "apply_rotary=True"),
        ("zoology/Based", {"num_key_value_heads": 1}, "num_key_value_heads=1 is not here, only 2"),
        ("zoology/Based", {"feature_name": "relu.ReLU", "feature_kwargs": {"eps": 0.1}}, r"eps=0\.1"),
        ("zoology/GatedLinearAttention", {"gate_fn": "mish"}, "gate_fn='mish'"),
        ("zoology/DeltaNet", {"use_short_conv": False}, "use_short_conv=False"),
        ("zoology/DeltaNet", {"qk_norm": "l1"}, "qk_norm='l1'"),
        ("zoology/RWKV7Attention", {"mode": "slow"}, "mode='slow'"),
        ("zoology/Mamba2", {"process_group": "group"}, "process_group='group'"),
        ("zoology/TTT", {"ttt_layer_type": "conv"}, "ttt_layer_type='conv'"),
        ("zoology/SparseAttention", {"use_triton_kernel": True}, "use_triton_kernel=True"),
        (
            "zoology/SparseAttention",
            {"selection_block_size": 4},
            "selection_block_size=4 is not here, only 8",
        ),
        ("zoology/LanguageModel", {"model": {"sequence_mixer": {"name": "z.MRA"}}}, "'z.MRA' is not here"),
        (
            "zoology/LanguageModel",
            {"model": {"sequence_mixer": {"name": "z.MHA"}, "block_type": "MambaBlock"}},
            "block_type='MambaBlock' is here with Mamba alone",
        ),
        (
            "zoology/MQARMixture",
            {"train_configs": [{"vocab_size": 128}]},
            "prepare_data: random_non_queries=True is not here",
        ),
    ],
)
def test_what_ours_cannot_express_is_refused(kind, option, message):
    own = [file for file, entry in systems.OWN_INDEX.items() if entry["kind"] == kind]
    case = Case(systems.OWN / own[0], torch.float64)
    case.kwargs = case.kwargs | option
    with pytest.raises(NotImplementedError, match=message):
        ADAPTERS[kind](case)


def test_arguments_are_all_of_the_signature():
    assert official("f", {"a": 1, "lost": 2}, unused=("lost",), a=REQUIRED, b=3) == {"a": 1, "b": 3}
    with pytest.raises(TypeError, match="f needs the argument a"):
        official("f", {}, a=REQUIRED, b=3)
    with pytest.raises(NotImplementedError, match=r"f: a=1 is not here, only \(2, 3\)"):
        only("f", {"a": 1}, a=(2, 3))
