"""How fast a trained model generates: tokens per second of decoding, at growing lengths of context."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatework.models.language.decoder import GateworkForCausalLM
from gatework.tasks.language import FLOAT_BYTES

#: Tokens decoded at a time: what a mixer does only every so many tokens (mini-batches) is in the mean.
_STRETCH = 16
_REPEATS = 3


def decoding_speed(model: GateworkForCausalLM, contexts: Sequence[int]) -> dict[str, Any]:
    """Time greedy decoding of one sequence: the last tokens of each context, after a random prompt.

    Args:
        model: A trained model; it is put into evaluation mode.
        contexts: Lengths of context, growing; each ends with up to 16 decoded tokens.

    Returns:
        ``measured``, a list of ``context``, ``tokens_per_second`` (the median of three times) and
        ``state_bytes`` (in float32); and ``stopped``, what the model says of the first context that it cannot
        reach, such as one beyond its position table, or None. Contexts from there on are left out.
    """
    model.train(False)
    measured: list[dict[str, int | float]] = []
    for context in contexts:
        try:
            rate = _tokens_per_second(model, context)
        except ValueError as error:
            return {"measured": measured, "stopped": str(error)}
        state_bytes = model.state_size(context) * FLOAT_BYTES
        measured.append({"context": context, "tokens_per_second": rate, "state_bytes": state_bytes})
    return {"measured": measured, "stopped": None}


@torch.inference_mode()
def _tokens_per_second(model: GateworkForCausalLM, context: int) -> float:
    steps = min(_STRETCH, context - 1)
    random = torch.Generator().manual_seed(context)
    prompt = torch.randint(model.config.vocab_size, (1, context - steps), generator=random)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    # A step never changes the state it is given, so that every repetition starts after the same prompt.
    _decode_seconds(model, prompt[:, -1:], cache, steps)
    seconds = [_decode_seconds(model, prompt[:, -1:], cache, steps) for _ in range(_REPEATS)]
    return steps / statistics.median(seconds)


def _decode_seconds(model: GateworkForCausalLM, token: Tensor, cache: Any, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        output = model(token, past_key_values=cache, use_cache=True)
        token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
    return time.perf_counter() - started
