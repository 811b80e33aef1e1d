"""Golden adapters of zoology: official keyword arguments to our objects."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from gatework.data import counting
from gatework.data.continuous_recall import ContinuousConfig, make_continuous
from gatework.data.mqar import MQARConfig, make_mqar
from gatework.data.mqar_statistics import mqar_statistics
from gatework.data.recall_mixture import RecallMixture, make_recall, make_split
from gatework.data.recall_variants import CompositionalConfig, ForgettingConfig
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from tests.golden import zoology_ar_slices as slices
from tests.golden import zoology_matrix_states as matrix_states
from tests.golden import zoology_selections as selections
from tests.golden import zoology_state_spaces as state_spaces
from tests.golden.case import Adapter, Case
from tests.golden.zoology_names import Options, Translate, mixer_adapter, renamed

#: Arguments of the official generators that belong to the call, not to the setting.
WITHOUT_NUMBERS = {"name", "seed", "_torch_seed", "include_slices"}


def mha(o: Options) -> tuple[str, dict[str, Any]]:
    return "attention", renamed(o, {"num_heads": "num_heads", "bias": "qkv_bias"})


def sliding_attn(o: Options) -> tuple[str, dict[str, Any]]:
    names = {"block_size": "window_size", "bias": "qkv_bias"}
    return "sliding_window", renamed({"block_size": 256, **o}, names, {"num_heads"})


def base_conv(o: Options) -> tuple[str, dict[str, Any]]:
    options = dict(o)
    if isinstance(options.get("kernel_size"), list):
        options["kernel_size"] = options["kernel_size"][options["layer_idx"]]
    names = {
        "l_max": "max_length",
        "kernel_size": "kernel_size",
        "implicit_long_conv": "implicit",
        "use_act": "activation",
    }
    return "base_conv", renamed(options, names)


def long_conv(o: Options) -> tuple[str, dict[str, Any]]:
    return "long_conv", renamed(o, {"l_max": "max_length"})


def implicit_long_conv(o: Options) -> tuple[str, dict[str, Any]]:
    return "implicit_long_conv", renamed(
        o, {"l_max": "max_length", "d_emb": "emb_dim", "d_hidden": "hidden_dim"}
    )


def hyena(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "l_max": "max_length",
        "short_filter_order": "short_filter_order",
        "filter_order": "filter_order",
        "emb_dim": "emb_dim",
        "num_inner_mlps": "num_inner_mlps",
        "w": "sine_frequency",
        "linear_mixer": "linear_filter",
        "modulate": "modulate",
        "shift": "shift",
        "fast_decay_pct": "fast_decay",
        "slow_decay_pct": "slow_decay",
        "target": "decay_target",
        "normalized": "normalized",
        "bias": "filter_bias",
    }
    # Learning rates and weight decays are hints to an optimizer; the others run only at these values.
    fixed = {"num_heads": 1, "num_blocks": 1, "bidirectional": False, "return_state": False}
    assert all(o[name] == value for name, value in fixed.items() if name in o)
    ignored = {
        *fixed,
        "outer_mixing",
        "filter_dropout",
        "lr",
        "lr_pos_emb",
        "wd",
        "modulation_lr",
        "channels",
    }
    return "hyena", renamed(o, names, ignored)


def h3(o: Options) -> tuple[str, dict[str, Any]]:
    initial = {
        "dt_min",
        "dt_max",
        "measure",
        "measure_args",
        "rank",
        "deterministic",
        "verbose",
        "lr",
        "mode",
    }
    kernel = renamed(o.get("kernel_args", {}), {"n_ssm": "num_ssm", "disc": "discretization"}, initial)
    names = {"d_state": "state_dim", "head_dim": "head_dim", "l_max": "max_length"}
    options = renamed(o, names, {"kernel_args", "use_fast_fftconv"})
    if "state_dim" in options:
        options["state_dim"] = int(options["state_dim"])  # official configurations divide with /
    return "h3", {**options, **kernel}


def gla(o: Options) -> tuple[str, dict[str, Any]]:
    options = {"num_heads": 4, "gate_fn": "swish", "use_output_gate": True, "conv_size": 4, **o}
    if not options.pop("use_short_conv", False):
        options["conv_size"] = 0
    if not options.pop("use_output_gate"):
        options["gate_fn"] = None
    names = {
        "num_heads": "num_heads",
        "num_kv_heads": "num_kv_heads",
        "expand_k": "expand_k",
        "expand_v": "expand_v",
        "feature_map": "feature_map",
        "conv_size": "conv_size",
        "gate_fn": "output_gate",
        "elementwise_affine": "norm_affine",
        "norm_eps": "norm_eps",
        "gate_logit_normalizer": "gate_logit_normalizer",
        "gate_low_rank_dim": "gate_rank",
        "clamp_min": "min_log_decay",
    }
    return "gated_linear_attention", renamed(options, names, {"mode", "conv_bias", "fuse_norm"})


def mamba2(o: Options) -> tuple[str, dict[str, Any]]:
    names = {
        "d_state": "state_dim",
        "d_conv": "conv_size",
        "expand": "expand",
        "headdim": "head_dim",
        "d_ssm": "ssm_dim",
        "ngroups": "num_groups",
        "D_has_hdim": "skip_per_channel",
        "rmsnorm": "norm",
        "norm_before_gate": "norm_before_gate",
        "dt_limit": "dt_limit",
        "bias": "bias",
        "conv_bias": "conv_bias",
    }
    initial = {"conv_init", "A_init_range", "dt_min", "dt_max", "dt_init_floor"}
    engine = {"chunk_size", "use_mem_eff_path", "use_fast_path", "sequence_parallel", "num_feature_maps"}
    options = renamed(o, names, initial | engine)
    if "dt_limit" in options:
        options["dt_limit"] = tuple(float(bound) for bound in options["dt_limit"])
    return "mamba2", options


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    **matrix_states.MIXERS,
    **state_spaces.MIXERS,
    **selections.MIXERS,
    "MHA": mha,
    "SlidingAttn": sliding_attn,
    "BaseConv": base_conv,
    "LongConvolution": long_conv,
    "ImplicitLongConvolution": implicit_long_conv,
    "Hyena": hyena,
    "H3": h3,
    "GatedLinearAttention": gla,
    "Mamba2": mamba2,
}


def layer_specs(config: Options, num_layers: int) -> list[dict[str, Any]]:
    """One of our layer specs per layer: lists of kernel sizes are indexed by layer."""
    configs = [config]
    if config["name"].endswith(".Hybrid"):
        configs = config["kwargs"]["configs"]
    specs = []
    for index in range(num_layers):
        layer = configs[index % len(configs)]
        translate = MIXERS[layer["name"].rsplit(".", 1)[-1]]
        name, options = translate({**layer.get("kwargs", {}), "layer_idx": index})
        specs.append({"name": name, **options})
    return specs


def language_model(case: Case) -> dict[str, Tensor]:
    official = {
        "d_model": 128,
        "n_layers": 2,
        "max_position_embeddings": 64,
        "vocab_size": 8192,
        "block_type": "TransformerBlock",
        "state_mixer": {"name": "zoology.mixers.mlp.MLP", "kwargs": {"hidden_mult": 4}},
        **case.kwargs["model"],
    }
    mamba = official["block_type"] != "TransformerBlock"
    state_mixer = official["state_mixer"]
    config = GateworkConfig(
        vocab_size=official["vocab_size"],
        hidden_size=official["d_model"],
        num_hidden_layers=official["n_layers"],
        mixers=layer_specs(official["sequence_mixer"], official["n_layers"]),
        channel_mixer="none" if mamba else state_mixer["name"].rsplit(".", 1)[-1].lower(),
        mlp_ratio=float(state_mixer.get("kwargs", {}).get("hidden_mult", 1)),
        norm="rmsnorm" if mamba else "layernorm",
        final_norm_eps=official.get("layer_norm_epsilon", 1e-5),
        learned_positions=official["max_position_embeddings"],
        train_embeddings=official.get("learnable_word_embeddings", True),
        pad_vocab_size_multiple=official.get("pad_vocab_size_multiple", 1),
    )
    model = case.load(GateworkForCausalLM(config))
    inputs, labels = case.inputs["input_ids"], case.inputs["labels"]
    output = model(inputs, shift_labels=labels, output_hidden_states=True)
    logits = model.lm_head(output.hidden_states[-1])
    hits = (logits.argmax(-1) == labels) & (labels != -100)
    return {
        "hidden": output.hidden_states[-1],
        "logits": logits,
        "loss": output.loss,
        "preds": logits.argmax(-1),
        "accuracy": hits.sum(1) / (labels != -100).sum(1),
    }


def without(options: Options, *names: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


#: Settings by the names of the authors' tasks.
VARIANTS = {
    "multiquery_ar": MQARConfig,
    "compositional": CompositionalConfig,
    "compositional_mqar": CompositionalConfig,
    "forgetting": ForgettingConfig,
    "forgetting_mqar": ForgettingConfig,
    "parity": counting.ParityConfig,
    "majority": counting.MajorityConfig,
    "vocab_majority": counting.VocabMajorityConfig,
    "cumulative_parity": counting.CumulativeParityConfig,
    "cumulative_majority": counting.CumulativeMajorityConfig,
}


def setting(name: str, options: Options) -> Any:
    """Our setting; the official functions of bit tasks take a vocabulary, which has no effect."""
    kind = VARIANTS[name]
    known = {field.name for field in fields(kind)}
    options = without(options, *WITHOUT_NUMBERS, *({"vocab_size"} - known))
    return kind(**options)


def mqar_data(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for index, call in enumerate(case.kwargs):
        filler = None if call["_torch_seed"] is None else torch.Generator().manual_seed(call["_torch_seed"])
        config = setting("multiquery_ar", call)
        segment = make_mqar(config, call["seed"], mode="compat", filler=filler)
        outputs |= {f"{index}/inputs": segment.inputs, f"{index}/labels": segment.labels}
    return outputs


def mqar_statistics_of(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for index, call in enumerate(case.kwargs):
        config = setting("multiquery_ar", call)
        counted = mqar_statistics(make_mqar(config, call["seed"], mode="compat"), config)
        outputs |= {
            f"{index}/slot_hist": torch.from_numpy(counted.slot_histogram),
            f"{index}/distance_hist": torch.from_numpy(counted.distance_histogram),
            f"{index}/p": torch.from_numpy(counted.slot_probabilities),
            f"{index}/n_labels": torch.tensor(counted.num_labels),
        }
    return outputs


def mqar_mixture(case: Case) -> dict[str, Tensor]:
    kwargs = {"batch_size": 32, "seed": 123, **case.kwargs}
    size = kwargs["batch_size"]
    mixture = RecallMixture(
        *(
            [setting(config.get("name", "multiquery_ar"), config) for config in kwargs[f"{split}_configs"]]
            for split in ("train", "test")
        ),
        batch_size=tuple(size) if isinstance(size, list) else size,
        seed=kwargs["seed"],
    )
    outputs = {}
    for split, seeds in zip(("train", "test"), mixture.segment_seeds, strict=True):
        batches = make_split(mixture, split, mode="compat", compat="official")
        outputs[f"{split}_seeds"] = torch.tensor(seeds)
        rows = []
        for index in range(len(batches)):
            inputs, labels, slices, _ = batches[index]
            outputs |= {f"{split}/{index}/inputs": inputs, f"{split}/{index}/labels": labels}
            rows.append([*inputs.shape, slices[0].get("num_kv_pairs", 0), len(slices)])
        outputs[f"{split}/batches"] = torch.tensor(rows)
    return outputs


def task_variants(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, call in case.kwargs.items():
        options = without(call, "seed", "_torch_seed")
        if name == "continuous":
            embeddings = case.inputs["continuous/embeddings"].detach()
            segment: Any = make_continuous(ContinuousConfig(**options), call["seed"], embeddings)
        else:
            torch_seed = call.get("_torch_seed")
            filler = None if torch_seed is None else torch.Generator().manual_seed(torch_seed)
            segment = make_recall(setting(name, call), call["seed"], compat="official", filler=filler)
        outputs |= {f"{name}/inputs": segment.inputs, f"{name}/labels": segment.labels}
    return outputs


ADAPTERS: dict[str, Adapter] = {
    **{f"zoology/{name}": mixer_adapter(translate) for name, translate in MIXERS.items()},
    **matrix_states.ADAPTERS,
    **state_spaces.ADAPTERS,
    **selections.ADAPTERS,
    **slices.ADAPTERS,
    "zoology/LanguageModel": language_model,
    "zoology/MQARData": mqar_data,
    "zoology/MQARStatistics": mqar_statistics_of,
    "zoology/MQARMixture": mqar_mixture,
    "zoology/TaskVariants": task_variants,
}
