"""Test-time training: a small model per head that is trained on the sequence while it reads it.

The state of the mixer is the model. Every token takes one step of gradient descent on a regression from its
key to its value, and is then answered by the model at its query. Steps of one mini-batch all start from the
parameters before it, which makes them parallel. Source: arXiv:2407.04620 (sections 2.3 to 2.7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gatework.checks import check_shape

#: Mini-batches whose outputs are computed together; their parameters exist at the same time.
_GROUP = 32

_Tokens = Float[Tensor, "batch heads length head_dim"]
_Rates = Float[Tensor, "batch heads length"]
_Schedule = Float[Tensor, " mini_batch"]
_Norm = Float[Tensor, "heads head_dim"]
_Square = Float[Tensor, "batch heads head_dim head_dim"]
_Up = Float[Tensor, "batch heads head_dim hidden_dim"]
_Down = Float[Tensor, "batch heads hidden_dim head_dim"]
_Bias = Float[Tensor, "batch heads 1 head_dim"]
_HiddenBias = Float[Tensor, "batch heads 1 hidden_dim"]


def ttt_linear_reference(
    q: _Tokens,
    k: _Tokens,
    v: _Tokens,
    rates: _Rates,
    schedule: _Schedule,
    norm_weight: _Norm,
    norm_bias: _Norm,
    weight: _Square,
    bias: _Bias,
    *,
    eps: float = 1e-6,
) -> tuple[_Tokens, _Square, _Bias]:
    """The definition for ``f(x) = x W + b``, one token after the other.

    With ``p_0 = (W, b)`` before a mini-batch, ``i`` the place of a token in it and the loss
    ``l_j(p) = |LN(f_p(k_j)) - (v_j - k_j)|^2 / 2``, the token changes the model to
    ``p_i = p_0 - schedule_i sum_{j<=i} rate_j grad l_j(p_0)`` and reads ``o_i = q_i + LN(f_{p_i}(q_i))``.
    The next mini-batch starts from the last ``p_i``.
    """
    outputs, (weight, bias) = _gradient_descent(
        _linear, q, k, v, rates, schedule, (norm_weight, norm_bias), (weight, bias), eps
    )
    return outputs, weight, bias


def ttt_mlp_reference(
    q: _Tokens,
    k: _Tokens,
    v: _Tokens,
    rates: _Rates,
    schedule: _Schedule,
    norm_weight: _Norm,
    norm_bias: _Norm,
    weight1: _Up,
    bias1: _HiddenBias,
    weight2: _Down,
    bias2: _Bias,
    *,
    eps: float = 1e-6,
) -> tuple[_Tokens, _Up, _HiddenBias, _Down, _Bias]:
    """The definition of :func:`ttt_linear_reference` for ``f(x) = gelu(x W1 + b1) W2 + b2`` (tanh form)."""
    outputs, parameters = _gradient_descent(
        _mlp, q, k, v, rates, schedule, (norm_weight, norm_bias), (weight1, bias1, weight2, bias2), eps
    )
    weight1, bias1, weight2, bias2 = parameters
    return outputs, weight1, bias1, weight2, bias2


def ttt_linear(
    q: _Tokens,
    k: _Tokens,
    v: _Tokens,
    rates: _Rates,
    schedule: _Schedule,
    norm_weight: _Norm,
    norm_bias: _Norm,
    weight: _Square,
    bias: _Bias,
    *,
    eps: float = 1e-6,
) -> tuple[_Tokens, _Square, _Bias]:
    """Read a sequence with a linear model per head, trained on the way, in O(length) time and memory.

    Computes what :func:`ttt_linear_reference` defines. All gradients of a mini-batch are taken at its first
    parameters, so that they are rank-one and the model a token sees is never formed (dual form, section 2.5):
    only gradients and one update per mini-batch are sequential, outputs are computed for many at once.

    Args:
        q: Queries, any floating dtype; half precisions are computed in float32.
        k: Keys, which the model learns to map to ``v - k``.
        v: Values.
        rates: Learning rate of every token.
        schedule: Factor on the summed steps at every place of a mini-batch, as long as one.
        norm_weight: Scale of the layer norm behind the model, per head.
        norm_bias: Shift of that norm.
        weight: Model before the first token.
        bias: Its bias.
        eps: Added to the variance of the norm.

    Returns:
        The outputs in the dtype of ``v``, and the model after the last complete mini-batch, in at least
        float32. To continue elsewhere than at the end of a mini-batch, give its tokens again.

    Raises:
        ValueError: If a shape does not match; the message names the argument.
    """
    _check(q, k, v, rates, schedule, norm_weight, norm_bias, {"weight": weight, "bias": bias}, q.shape[-1])
    norm = (norm_weight, norm_bias)
    outputs, (weight, bias) = _in_groups(_linear_group, q, k, v, rates, schedule, norm, (weight, bias), eps)
    return outputs, weight, bias


def ttt_mlp(
    q: _Tokens,
    k: _Tokens,
    v: _Tokens,
    rates: _Rates,
    schedule: _Schedule,
    norm_weight: _Norm,
    norm_bias: _Norm,
    weight1: _Up,
    bias1: _HiddenBias,
    weight2: _Down,
    bias2: _Bias,
    *,
    eps: float = 1e-6,
) -> tuple[_Tokens, _Up, _HiddenBias, _Down, _Bias]:
    """Read a sequence with a two-layer network per head, trained on the way: :func:`ttt_mlp_reference`.

    Arguments, results, cost and errors are those of :func:`ttt_linear`, with ``hidden_dim`` units between
    ``weight1`` and ``weight2``. Both layers use the dual form; the second one's products are those of the
    hidden units that the first one, as updated for the token, gives.
    """
    parameters: tuple[Tensor, ...] = (weight1, bias1, weight2, bias2)
    named = dict(zip(("weight1", "bias1", "weight2", "bias2"), parameters, strict=True))
    _check(q, k, v, rates, schedule, norm_weight, norm_bias, named, weight1.shape[-1])
    norm = (norm_weight, norm_bias)
    outputs, parameters = _in_groups(_mlp_group, q, k, v, rates, schedule, norm, parameters, eps)
    weight1, bias1, weight2, bias2 = parameters
    return outputs, weight1, bias1, weight2, bias2


def _linear(parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """``x W + b`` of every head, for one token."""
    weight, bias = parameters
    return (x.unsqueeze(-2) @ weight + bias).squeeze(-2)


def _mlp(parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
    """``gelu(x W1 + b1) W2 + b2`` of every head, for one token."""
    hidden = F.gelu(_linear(parameters[:2], x), approximate="tanh")
    return _linear(parameters[2:], hidden)


def _gradient_descent(
    model: Callable[[tuple[Tensor, ...], Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    schedule: Tensor,
    norm: tuple[Tensor, Tensor],
    parameters: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Train ``model`` token by token; gradients are those of automatic differentiation."""

    def normed(parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return F.layer_norm(model(parameters, x), x.shape[-1:], eps=eps) * norm[0] + norm[1]

    def loss(parameters: tuple[Tensor, ...], token: int) -> Tensor:
        key = k[:, :, token]
        return (normed(parameters, key) - (v[:, :, token] - key)).square().sum() / 2

    start, outputs = parameters, []
    for token in range(q.shape[2]):
        place = token % schedule.shape[0]
        if place == 0:
            start = parameters
            total = tuple(torch.zeros_like(parameter) for parameter in start)
        gradients = torch.func.grad(loss)(start, token)
        rate = rates[:, :, token, None, None]
        total = tuple(t + rate * gradient for t, gradient in zip(total, gradients, strict=True))
        parameters = tuple(p - schedule[place] * t for p, t in zip(start, total, strict=True))
        query = q[:, :, token]
        outputs.append(query + normed(parameters, query))
    incomplete = q.shape[2] % schedule.shape[0] != 0
    return torch.stack(outputs, 2) if outputs else v * 0, start if incomplete else parameters


def _in_groups(
    group: Callable[..., tuple[Tensor, tuple[Tensor, ...]]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    schedule: Tensor,
    norm: tuple[Tensor, Tensor],
    parameters: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run ``group`` over groups of mini-batches, and over the tokens after the last complete one."""
    batch, heads, length, _ = q.shape
    size, kind, device = schedule.shape[0], v.dtype, q.device
    dtype = torch.promote_types(torch.promote_types(q.dtype, kind), torch.float32)
    if v.numel() == 0:
        return (q * v).to(kind), tuple(parameter.to(dtype) for parameter in parameters)
    with torch.autocast(device.type, enabled=False):
        tokens = [tensor.to(dtype).flatten(0, 1) for tensor in (q, k, v, rates.unsqueeze(-1))]
        schedule = schedule.to(dtype)
        scale, shift = (tensor.to(dtype).repeat(batch, 1).unsqueeze(1) for tensor in norm)
        parameters = tuple(parameter.to(dtype).flatten(0, 1) for parameter in parameters)
        rest, most = length % size, _GROUP * size
        sizes = [min(most, length - rest - start) for start in range(0, length - rest, most)]
        # The gradient of a split is one concatenation; that of slices, a whole sequence for each of them.
        *groups, last = zip(*(tensor.split([*sizes, rest], 1) for tensor in tokens), strict=True)
        outputs = []
        for part in groups:
            several = (tensor.unflatten(1, (tensor.shape[1] // size, size)) for tensor in part)
            y, parameters = group(*several, schedule, scale, shift, parameters, eps)
            outputs.append(y.flatten(1, 2))
        if rest:
            several = (tensor.unsqueeze(1) for tensor in last)
            y, _ = group(*several, schedule[:rest], scale, shift, parameters, eps)
            outputs.append(y.squeeze(1))
        y = torch.cat(outputs, 1).unflatten(0, (batch, heads))
        return y.to(kind), tuple(parameter.unflatten(0, (batch, heads)) for parameter in parameters)


def _linear_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    schedule: Tensor,
    scale: Tensor,
    shift: Tensor,
    parameters: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs of mini-batches ``(pairs of batch and head, mini-batches, tokens, head_dim)``; the last model.

    A bias is the weight of an input that is always 1, which saves an update per mini-batch.
    """
    keys, queries = F.pad(k, (0, 1), value=1.0), F.pad(q, (0, 1), value=1.0)
    offset, squared = _regression(k, v, scale, shift)
    steps = (keys * rates * schedule[-1]).mT
    model, asked, gradients = torch.cat(parameters, 1), [], []
    inputs = torch.cat([keys, queries], 2)
    for rows, step, off in zip(inputs.unbind(1), steps.unbind(1), offset.unbind(1), strict=True):
        learned, answers = torch.bmm(rows, model).chunk(2, 1)
        asked.append(answers)
        gradients.append(_norm_gradient(learned, off, squared, eps))
        model = torch.baddbmm(model, step, gradients[-1], alpha=-1)
    weights = _weights(queries, keys, schedule) * rates.mT
    answers = torch.stack(asked, 1) - weights @ torch.stack(gradients, 1)
    width = k.shape[-1]
    return _read(q, answers, scale, shift, eps), (model[:, :width], model[:, width:])


def _mlp_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    schedule: Tensor,
    scale: Tensor,
    shift: Tensor,
    parameters: tuple[Tensor, ...],
    eps: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same for two layers; gradients here are already multiplied by their token's rate."""
    keys, queries = F.pad(k, (0, 1), value=1.0), F.pad(q, (0, 1), value=1.0)
    offset, squared = _regression(k, v, scale, shift)
    steps = (keys * schedule[-1]).mT
    inputs, weights = torch.cat([keys, queries], 2), _weights(queries, keys, schedule)
    first, (second, bias) = torch.cat(parameters[:2], 1), parameters[2:]
    kept: list[tuple[Tensor, ...]] = []
    sequences = (tensor.unbind(1) for tensor in (inputs, weights, steps, offset, rates))
    for rows, weight, step, off, rate in zip(*sequences, strict=True):
        learned, asked = torch.bmm(rows, first).chunk(2, 1)
        hidden = F.gelu(learned, approximate="tanh")
        outer = rate * _norm_gradient(torch.baddbmm(bias, hidden, second), off, squared, eps)
        inner = torch.ops.aten.gelu_backward(torch.bmm(outer, second.mT), learned, approximate="tanh")
        query = F.gelu(torch.baddbmm(asked, weight, inner, alpha=-1), approximate="tanh")
        kept.append((torch.baddbmm(bias, query, second), query, hidden, outer))
        first = torch.baddbmm(first, step, inner, alpha=-1)
        update = schedule[-1] * outer
        second = torch.baddbmm(second, hidden.mT, update, alpha=-1)
        bias = bias - update.sum(1, keepdim=True)
    answers, queries, hiddens, outers = (torch.stack(tensors, 1) for tensors in zip(*kept, strict=True))
    # The 1 is the product of the constant inputs that the bias weighs.
    products = (queries @ hiddens.mT + 1).tril() * schedule[:, None]
    width = k.shape[-1]
    return (
        _read(q, answers - products @ outers, scale, shift, eps),
        (first[:, :width], first[:, width:], second, bias),
    )


def _regression(k: Tensor, v: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """What the loss adds to the normalised answers before its gradient, and its factor on them.

    The loss ``|scale x + shift - (v - k)|^2 / 2`` has the gradient ``scale^2 x + scale (shift - (v - k))``.
    """
    return scale.unsqueeze(1) * (shift.unsqueeze(1) - (v - k)), scale.square()


def _norm_gradient(x: Tensor, offset: Tensor, squared: Tensor, eps: float) -> Tensor:
    """Gradient of the loss by the answers ``x`` before their norm, in three differentiable operations."""
    shape = [x.shape[-1]]
    normed, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    gradient = torch.addcmul(offset, squared, normed)
    through: Tensor = torch.ops.aten.native_layer_norm_backward(
        gradient, x, shape, mean, rstd, None, None, [True, False, False]
    )[0]
    return through


def _weights(queries: Tensor, keys: Tensor, schedule: Tensor) -> Tensor:
    """``schedule_i (q_i . k_j)`` for ``j <= i``: how much the gradient of token j moves the answer to i."""
    return (queries @ keys.mT).tril() * schedule[:, None]


def _read(q: Tensor, answers: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    normed = F.layer_norm(answers, answers.shape[-1:], eps=eps)
    return q + normed * scale.unsqueeze(1) + shift.unsqueeze(1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    schedule: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    parameters: Mapping[str, Tensor],
    hidden: int,
) -> None:
    """Refuse arguments whose shapes do not match those of ``q``."""
    if q.ndim != 4:
        raise ValueError(f"q must have shape (batch, heads, length, head_dim), got {tuple(q.shape)}")
    batch, heads, length, dim = q.shape
    if schedule.ndim != 1 or not len(schedule):
        raise ValueError(f"schedule must have shape (mini_batch>=1,), got {tuple(schedule.shape)}")
    pairs = (batch, heads)
    expected = {
        "k": (k, tuple(q.shape)),
        "v": (v, tuple(q.shape)),
        "rates": (rates, (*pairs, length)),
        "norm_weight": (norm_weight, (heads, dim)),
        "norm_bias": (norm_bias, (heads, dim)),
    }
    shapes = {
        "weight": (dim, dim),
        "weight1": (dim, hidden),
        "bias1": (1, hidden),
        "weight2": (hidden, dim),
        "bias": (1, dim),
        "bias2": (1, dim),
    }
    expected |= {name: (tensor, (*pairs, *shapes[name])) for name, tensor in parameters.items()}
    for name, (tensor, shape) in expected.items():
        check_shape(name, tensor, shape)
