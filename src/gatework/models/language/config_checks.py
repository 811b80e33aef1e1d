"""What a configuration of :mod:`gatework.models.language.decoder` must be like, checked where it is made."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from gatework.checks import (
    check_choice,
    check_counts,
    check_flags,
    check_names,
    check_number,
    check_positive,
    check_probability,
    check_sizes,
    check_text,
    suggestion,
)
from gatework.layers.sequence.mixer import expanded
from gatework.models.language.residual_outputs import RESIDUAL_INITS
from gatework.registry import mixer_entry, mixer_options

if TYPE_CHECKING:
    from gatework.models.language.decoder import GateworkConfig

_CHANNEL_MIXERS = ("mlp", "glu", "identity", "none")
_NORMS = ("layernorm", "rmsnorm")
_EMBEDDING_INITS = ("default", "normal", "spherical")

#: What Transformers reads from a configuration, or writes into its file, besides its attributes: of today's
#: version and of older ones.
_OF_TRANSFORMERS = frozenset(
    {
        *("torch_dtype", "dtype", "num_labels", "rope_scaling", "rope_theta", "output_attentions"),
        *("attn_implementation", "experts_implementation", "per_layer_config", "use_return_dict"),
        *("architectures", "auto_map", "model_type", "name_or_path", "quantization_config"),
        *("transformers_version", "transformers_weights", "tie_encoder_decoder", "tokenizer_class"),
        *("torchscript", "pruned_heads", "tf_legacy_loss", "use_bfloat16", "prefix", "task_specific_params"),
        *("finetuning_task", "base_model_tp_plan", "base_model_pp_plan", "adapters", "peft_config"),
        *("add_cross_attention", "cross_attention_hidden_size", "is_decoder", "sep_token_id"),
        *("decoder_start_token_id", "custom_pipelines", "trust_remote_code", "revision"),
    }
)


def check_config(config: GateworkConfig) -> None:
    """Refuse impossible values.

    Raises:
        TypeError: If a value has another type.
        ValueError: If a value is impossible, or a mixer has no name that is known.
    """

    def values(*names: str) -> dict[str, Any]:
        return {name: getattr(config, name) for name in names}

    check_sizes(**values("vocab_size", "hidden_size", "num_hidden_layers", "context_length"))
    check_sizes(**values("pad_vocab_size_multiple"))
    check_counts(**values("learned_positions"))
    check_positive(**values("mlp_ratio", "norm_eps", "final_norm_eps"))
    check_number("initializer_range", config.initializer_range, at_least=0)
    for name, rate in values("embed_dropout", "resid_dropout", "drop_path_rate").items():
        check_probability(name, rate)
    check_flags(**values("init_linear", "train_embeddings", "tie_word_embeddings", "use_cache"))
    check_choice("channel_mixer", config.channel_mixer, _CHANNEL_MIXERS)
    check_choice("norm", config.norm, _NORMS)
    check_choice("embedding_init", config.embedding_init, _EMBEDDING_INITS)
    check_choice("residual_init", config.residual_init, RESIDUAL_INITS)
    if config.channel_mixer in ("mlp", "glu"):
        expanded("mlp_ratio", config.mlp_ratio, config.hidden_size)
    _check_names_of_mixers(config.mixers)


def _check_names_of_mixers(mixers: Any) -> None:
    if not isinstance(mixers, list | tuple):
        raise TypeError(f"mixers must be a list of names or of dicts with a 'name', got {mixers!r:.200}")
    if not mixers:
        raise ValueError("mixers must name at least one sequence mixer, got an empty list")
    for place, mixer in enumerate(mixers):
        if not isinstance(mixer, str | Mapping):
            raise TypeError(f"mixers[{place}] must be a name or a dict with a 'name', got {mixer!r:.200}")
        if not isinstance(mixer, str) and "name" not in mixer:
            raise ValueError(f"each of mixers must have a 'name', got {mixer}")
        name = mixer if isinstance(mixer, str) else mixer["name"]
        check_text(f"mixers[{place}]['name']", name)
        mixer_entry(name)
        options = () if isinstance(mixer, str) else mixer.keys() - {"name"}
        check_names(f"mixer {name!r} has no option", options, mixer_options(name))


def check_mixers(config: GateworkConfig) -> None:
    """Make every mixer once without memory for its weights, so that a wrong option is found here.

    Raises:
        TypeError: If a value of an option has another type, or a mixer no such option.
        ValueError: If a value is impossible.
    """
    assert config.mixers is not None
    for index in range(min(len(config.mixers), config.num_hidden_layers)):
        # A user's own mixer may need real memory: the model will make it there.
        with contextlib.suppress(RuntimeError), torch.device("meta"):
            config.mixer_of_layer(index)


def warn_of_unknown(kind: type[GateworkConfig], keys: Iterable[str]) -> None:
    """Warn of every key that neither ``kind`` nor Transformers has a meaning for."""
    own = sorted(kind.__annotations__.keys() - {"model_type"})
    known = _OF_TRANSFORMERS | set(dir(PreTrainedConfig)) | set(PreTrainedConfig.__dataclass_fields__)
    known |= GenerationConfig._get_default_generation_params().keys()
    for key in keys:
        if key not in known and not key.startswith("_"):
            warnings.warn(
                f"{kind.__name__} has no option {key!r}, kept as an attribute that nothing reads"
                f"{suggestion(key, own)}",
                stacklevel=4,
            )
