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
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Adapter, Case
from tests.golden.zoology import ar_slices as slices
from tests.golden.zoology import convolutions, matrix_states, selections, state_spaces
from tests.golden.zoology.options import Options, Translate, mixer_adapter, renamed

#: Arguments of the official generators that belong to the call, not to the setting.
WITHOUT_NUMBERS = {"name", "seed", "_torch_seed", "include_slices"}


#: Official classes of mixers by name: what makes our name and options of theirs.
MIXERS: dict[str, Translate] = {
    **convolutions.MIXERS,
    **matrix_states.MIXERS,
    **selections.MIXERS,
    **state_spaces.MIXERS,
}
#: Their official widths, where they have a default.
WIDTHS = {"GatedLinearAttention": 1024, "GatedDeltaNet": 2048, "RWKV7Attention": 1024, "RWKVTimeMixer": 512}


def layer_spec(config: Options, index: int, length: int) -> dict[str, Any]:
    """Our spec of one layer; hybrids and lists of kernel sizes are indexed by layer."""
    a = official("a mixer's configuration", config, name=REQUIRED, kwargs={})
    kind = a["name"].rsplit(".", 1)[-1]
    if kind == "Hybrid":
        configs = official("Hybrid", a["kwargs"], configs=REQUIRED)["configs"]
        return layer_spec(configs[index % len(configs)], index, length)
    if kind not in MIXERS:
        raise NotImplementedError(f"the mixer {a['name']!r} is not here")
    options = {**a["kwargs"], "layer_idx": index}
    if kind == "Based":
        options["sequence_length"] = length
    name, ours = MIXERS[kind](options)
    return {"name": name, **ours}


def channel_mixer(config: Options) -> dict[str, Any]:
    """Our options of the second half of a block."""
    a = official("a mixer's configuration", config, name=REQUIRED, kwargs={})
    kind = a["name"].rsplit(".", 1)[-1]
    if kind == "Identity":
        return {"channel_mixer": "identity"}
    if kind not in ("MLP", "GLU"):
        raise NotImplementedError(f"the channel mixer {a['name']!r} is not here")
    options = official(kind, a["kwargs"], hidden_mult=1, activation="gelu", return_residual=False)
    only(kind, options, activation="gelu", return_residual=False)
    return {"channel_mixer": kind.lower(), "mlp_ratio": float(options["hidden_mult"])}


def language_model_config(options: Options, length: int) -> GateworkConfig:
    """Ours for the authors' ``ModelConfig`` and inputs of ``length`` tokens."""
    a = official(
        "ModelConfig",
        options,
        sequence_mixer=REQUIRED,
        state_mixer={"name": "zoology.mixers.mlp.MLP", "kwargs": {"hidden_mult": 4}},
        d_model=128,
        n_layers=2,
        max_position_embeddings=64,
        learnable_word_embeddings=True,
        embedding_init_type="default",
        vocab_size=8192,
        resid_dropout=0.0,
        embed_dropout=0.1,
        drop_path=0.0,
        layer_norm_epsilon=1e-5,
        pad_vocab_size_multiple=1,
        block_type="TransformerBlock",
        name="default",
    )
    only("ModelConfig", a, block_type=("TransformerBlock", "MambaBlock", "Mamba2Block"))
    mixer, block = a["sequence_mixer"], {"norm": "layernorm", **channel_mixer(a["state_mixer"])}
    if a["block_type"] != "TransformerBlock":
        # It takes the options of the mixer for its own one, whatever that mixer is called.
        kind = a["block_type"].removesuffix("Block")
        if mixer["name"].rsplit(".", 1)[-1] != kind:
            raise NotImplementedError(f"block_type={a['block_type']!r} is here with {kind} alone")
        block = {"norm": "rmsnorm", "channel_mixer": "none"}
    return GateworkConfig(
        mixers=[layer_spec(mixer, index, length) for index in range(a["n_layers"])],
        learned_positions=max(a["max_position_embeddings"], 0),
        **block,
        **renamed(a, vocab_size="vocab_size", hidden_size="d_model", num_hidden_layers="n_layers"),
        **renamed(a, final_norm_eps="layer_norm_epsilon", train_embeddings="learnable_word_embeddings"),
        **renamed(a, embedding_init="embedding_init_type", embed_dropout="embed_dropout"),
        **renamed(a, resid_dropout="resid_dropout", drop_path_rate="drop_path"),
        **renamed(a, pad_vocab_size_multiple="pad_vocab_size_multiple"),
    )


def language_model(case: Case) -> dict[str, Tensor]:
    inputs, labels = case.inputs["input_ids"], case.inputs["labels"]
    a = official("the case", case.kwargs, model=REQUIRED, data={})  # how the inputs were drawn
    model = case.load(GateworkForCausalLM(language_model_config(a["model"], inputs.shape[1])))
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
    if name not in VARIANTS:
        raise NotImplementedError(f"the task {name!r} is not here, only {', '.join(VARIANTS)}")
    kind = VARIANTS[name]
    known = {field.name for field in fields(kind)}
    options = without(options, *WITHOUT_NUMBERS, *({"vocab_size"} - known))
    return kind(**options)


def filler_of(call: Options) -> torch.Generator | None:
    """The generator of random tokens, whose seed stands beside the arguments of a call."""
    seed = call.get("_torch_seed")
    return None if seed is None else torch.Generator().manual_seed(seed)


def mqar_data(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for index, call in enumerate(case.kwargs):
        config, filler = setting("multiquery_ar", call), filler_of(call)
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
    a = official(
        "DataConfig",
        case.kwargs,
        train_configs=REQUIRED,
        test_configs=REQUIRED,
        batch_size=32,
        seed=123,
        cache_dir=None,
        force_cache=False,
        num_passes=1,  # of a cache; nothing uses the last one
    )
    for config in (*a["train_configs"], *a["test_configs"]):
        # Random tokens come from the global generator in whatever state it is.
        kind = VARIANTS[config.get("name", "multiquery_ar")]
        if hasattr(kind, "random_non_queries"):
            only("prepare_data", {"random_non_queries": True, **config}, random_non_queries=False)
    size = a["batch_size"]
    mixture = RecallMixture(
        *(
            [setting(config.get("name", "multiquery_ar"), config) for config in a[f"{split}_configs"]]
            for split in ("train", "test")
        ),
        batch_size=tuple(size) if isinstance(size, list) else size,
        seed=a["seed"],
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
            seed = call.get("seed", 42)
            segment: Any = make_continuous(ContinuousConfig(**options), seed, embeddings)
        else:
            config = setting(name, call)
            segment = make_recall(config, call["seed"], compat="official", filler=filler_of(call))
        outputs |= {f"{name}/inputs": segment.inputs, f"{name}/labels": segment.labels}
    return outputs


ADAPTERS: dict[str, Adapter] = {
    **{f"zoology/{name}": mixer_adapter(mixer, WIDTHS.get(name)) for name, mixer in MIXERS.items()},
    **matrix_states.ADAPTERS,
    **selections.ADAPTERS,
    **slices.ADAPTERS,
    "zoology/LanguageModel": language_model,
    "zoology/MQARData": mqar_data,
    "zoology/MQARStatistics": mqar_statistics_of,
    "zoology/MQARMixture": mqar_mixture,
    "zoology/TaskVariants": task_variants,
}
