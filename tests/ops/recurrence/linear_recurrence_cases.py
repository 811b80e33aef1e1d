"""The forms of the linear recurrence, each as functions of the same named tensors."""

from __future__ import annotations

import torch

from gatework.ops.recurrence.linear_recurrence import (
    delta_rule,
    delta_rule_reference,
    delta_rule_step,
    gated_linear_attention,
    gated_linear_attention_reference,
    gated_linear_attention_step,
    low_rank_recurrence,
    low_rank_recurrence_reference,
    low_rank_recurrence_step,
)

DECAYS = ("none", "head", "channel")
#: Form -> fast function, definition, one step, names of what stands before and after the log-decay.
FORMS = {
    "gated": (
        gated_linear_attention,
        gated_linear_attention_reference,
        gated_linear_attention_step,
        ("q", "k", "v"),
        (),
    ),
    "bonus": (
        gated_linear_attention,
        gated_linear_attention_reference,
        gated_linear_attention_step,
        ("q", "k", "v"),
        (),
    ),
    "delta": (delta_rule, delta_rule_reference, delta_rule_step, ("q", "k", "v", "beta"), ()),
    "low_rank": (
        low_rank_recurrence,
        low_rank_recurrence_reference,
        low_rank_recurrence_step,
        ("q", "k", "v"),
        ("a", "b"),
    ),
}


def draw(form, decay, *, sizes=(1, 2, 7, 3, 2), seed=0, strength=1.0, dtype=torch.float64):
    """Tensors by name for sizes (batch, heads, length, key_dim, value_dim), all asking for gradients."""
    gen = torch.Generator().manual_seed(seed)
    batch, heads, length, key_dim, value_dim = sizes

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=dtype)

    tokens = (batch, heads, length)
    tensors = {"q": normal(*tokens, key_dim), "k": normal(*tokens, key_dim), "v": normal(*tokens, value_dim)}
    tensors["initial_state"] = normal(batch, heads, key_dim, value_dim)
    if decay != "none":
        shape = tokens if decay == "head" else (*tokens, key_dim)
        tensors["log_decay"] = -strength * torch.rand(shape, generator=gen, dtype=dtype)
    if form == "bonus":
        tensors["bonus"] = normal(heads, key_dim)
    if form == "delta":
        tensors["beta"] = 1.5 * torch.rand(tokens, generator=gen, dtype=dtype)
    if form == "low_rank":
        # Removes along a unit vector some of what it finds there, as RWKV-7 does: states stay small.
        unit = torch.nn.functional.normalize(normal(*tokens, key_dim), dim=-1)
        tensors["a"], tensors["b"] = -unit, unit * torch.rand((*tokens, 1), generator=gen, dtype=dtype)
    if form in ("delta", "low_rank"):
        tensors["k"] = torch.nn.functional.normalize(tensors["k"], dim=-1)
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def call(function, form, tensors, **options):
    """Call a fast function or a definition with tensors by name."""
    before, after = FORMS[form][3:]
    tokens = [tensors[name] for name in before] + [tensors.get("log_decay")] + [tensors[n] for n in after]
    if "bonus" in tensors:
        options["bonus"] = tensors["bonus"]
    return function(*tokens, initial_state=tensors.get("initial_state"), **options)


def cut(tensors, piece):
    """The tokens ``piece`` of every sequence."""
    whole = {"initial_state", "bonus"}
    return {name: x if name in whole else x[:, :, piece] for name, x in tensors.items()}


def with_gradients(results, tensors, seed=0):
    """Outputs and state, and the gradients of a random weighting of both."""
    gen = torch.Generator().manual_seed(seed)
    total = sum((x * torch.randn(x.shape, generator=gen, dtype=torch.float64)).sum() for x in results)
    return [
        *results,
        *torch.autograd.grad(total, list(tensors.values()), materialize_grads=True, allow_unused=True),
    ]
