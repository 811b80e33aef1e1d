"""Any causal language model of Transformers, as something that gives a loss for every label.

Models on a disk or the hub are loaded with what would make their numbers meaningless refused: weights that
are missing, a prediction that sees what it should predict.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from gatework.checks import check_choice
from gatework.data.segment import IGNORED
from gatework.hf import GateworkConfig, without_bars  # also registers our own models

#: Floating types that a model can be loaded in, by name.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Entries of a configuration that bound the positions of a model. Ours has a table of its own.
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length")
# How far logits may move, relative to the largest, when only later tokens change.
_MOST_LEAK = {torch.float32: 1e-4, torch.float64: 1e-4}
_MOST_LEAK_HALF = 0.02


def model_place(name_or_path: str | os.PathLike[str]) -> str:
    """Return the folder of a model, also where the directory of a training is named, or a name on the hub.

    Raises:
        ValueError: If it is a file, or a folder that holds no model.
    """
    path = Path(name_or_path)
    if path.is_file():
        raise ValueError(f"model must be a folder or a name on the hub, but {str(path)!r} is a file")
    if not path.is_dir():
        return str(name_or_path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return str(folder)
    raise ValueError(
        f"model {str(path)!r} is a folder without config.json: name one that save_pretrained or a finished "
        "`gatework fit` wrote"
    )


def load_causal_model(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model for evaluation.

    Args:
        name_or_path: A folder that ``save_pretrained`` wrote, the directory of a finished ``gatework fit``,
            or a name on the hub.
        dtype: Type of the weights, of :data:`DTYPES`.
        device: Where it computes; the GPU by default, if there is one.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        ValueError: If there is no such model, it is not causal, weights are missing in it, or there is no
            such type or device.
    """
    check_choice("dtype", dtype, DTYPES)
    place, target = model_place(name_or_path), _device(device)
    try:
        with without_bars():
            config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
            _check_is_decoder(place, config)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=DTYPES[dtype],
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:  # Transformers, safetensors and the hub raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model {place!r} cannot be loaded: {first}") from error
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ValueError(
            f"model {place!r} lacks weights of a causal language model ({', '.join(missing[:3])}): it was "
            "saved without its head, or is another kind of model"
        )
    model: PreTrainedModel = loaded[0].to(target).eval()
    return model


def _check_is_decoder(place: str, config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{type(config).__name__} is an encoder and a decoder, not a causal language model")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that this machine has, such as cpu, got {name!r} ({first})"
        ) from error
    return device


def context_limit(config: PretrainedConfig) -> int | None:
    """Return the longest sequence that a model takes, as its configuration says; ``None`` if it does not."""
    if config.model_type == GateworkConfig.model_type:
        return config.learned_positions or None
    text: Any = config.get_text_config()
    sizes = [getattr(text, name, None) for name in _LIMITS]
    found = [size for size in sizes if isinstance(size, int) and size > 0]
    return min(found) if found else None


def num_embeddings(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has embeddings for."""
    weight: Any = model.get_input_embeddings().weight
    return len(weight)


def token_losses(
    model: PreTrainedModel, inputs: Int64[Tensor, "rows length"], labels: Int64[Tensor, "rows length"]
) -> Float[Tensor, "rows length"]:
    """Return the negative log-likelihood of each label in nats, in float32; 0 where there is none (-100).

    Args:
        model: A causal language model, in evaluation.
        inputs: Token ids, each row a context of its own. Padding may follow, not precede.
        labels: The token after each, or -100.

    Raises:
        ValueError: If the model gives no logits for a label.
    """
    logits = _logits(model, inputs)
    if labels.numel() and int(labels.max()) >= logits.shape[-1]:
        raise ValueError(
            f"labels must be below the {logits.shape[-1]} logits of the model, got {int(labels.max())}"
        )
    # Row by row: with a large vocabulary a second copy of all logits would be most of the memory.
    rows = [
        F.cross_entropy(row.float(), wanted, ignore_index=IGNORED, reduction="none")
        for row, wanted in zip(logits, labels.to(logits.device), strict=True)
    ]
    return torch.stack(rows)


def check_causal(model: PreTrainedModel, tokens: Int64[Tensor, "rows length"]) -> None:
    """Refuse a model whose prediction changes with tokens that come later.

    Args:
        model: In evaluation.
        tokens: Some text of at least 2 tokens.

    Raises:
        ValueError: If it does, as encoders do.
    """
    half = tokens.shape[1] // 2
    changed = tokens.clone()
    changed[:, half:] = (tokens[:, half:] + 1) % num_embeddings(model)
    before, after = (_logits(model, each)[:, :half].float() for each in (tokens, changed))
    allowed = _MOST_LEAK.get(model.dtype, _MOST_LEAK_HALF) * float(before.abs().max())
    moved = float((before - after).abs().max())
    if moved > allowed:
        raise ValueError(
            f"{type(model).__name__} is not causal: its predictions change by {moved:.2g} with tokens that "
            "come later, so its loss on text means nothing"
        )


@torch.inference_mode()
def _logits(model: PreTrainedModel, inputs: Tensor) -> Tensor:
    # By the configuration and not by an argument, which not every model takes.
    used = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        logits: Tensor = model(input_ids=inputs.to(model.device)).logits
    finally:
        model.config.use_cache = used
    return logits
