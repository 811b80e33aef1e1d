"""Continue a text with a trained language model, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gatework.data.tokenizer import ByteTokenizer, TextTokenizer, load_tokenizer
from gatework.models.language.decoder import GateworkForCausalLM

#: The file by which a tokenizer beside the weights is recognised.
TOKENIZER = "tokenizer.json"


def tokenizer_beside(weights: Path, own: TextTokenizer) -> TextTokenizer:
    """Return the tokenizer that was saved beside a model's weights, or else the task's ``own``.

    A tokenizer that was trained on a text follows from it, and the text may have changed since.

    Raises:
        ValueError: If what was saved cannot be loaded.
    """
    if isinstance(own, ByteTokenizer) or not (weights.parent / TOKENIZER).is_file():
        return own
    return load_tokenizer(weights.parent)


def continue_text(
    model: GateworkForCausalLM,
    tokenizer: TextTokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """Continue a text: with the likeliest tokens, or with draws at a ``temperature`` above 0.

    Returns:
        What follows the prompt.

    Raises:
        ValueError: If the model knows fewer tokens than the tokenizer.
    """
    known = model.config.vocab_size
    if known < tokenizer.vocab_size:
        raise ValueError(
            f"prompt needs a model of {tokenizer.identity} ({tokenizer.vocab_size} tokens), and this one "
            f"knows {known} tokens"
        )
    torch.manual_seed(seed)
    (ids,) = tokenizer.encode([prompt.encode()])
    inputs = torch.tensor([ids.tolist()], device=model.device)
    chosen: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        chosen |= {"temperature": temperature, "top_k": 0}
    if known > tokenizer.vocab_size:  # rows that round the vocabulary up stand for nothing
        chosen["suppress_tokens"] = [*range(tokenizer.vocab_size, known)]
    generator: Any = model.train(False)  # Transformers does not say that it may be called
    output = generator.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=tokenizer.end_id,
        **chosen,
    )
    return tokenizer.decode(output[0, inputs.shape[1] :].tolist())
