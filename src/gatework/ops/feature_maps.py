"""Feature maps of linear attention: what replaces the exponential of a softmax by a dot product of features.

``exp(q . k)`` becomes ``phi(q) . phi(k)``, so that sums over keys fit a state of fixed size
(arXiv:2006.16236, section 3.2). The maps are those that Zoology compares (arXiv:2312.04927, appendix; also
arXiv:2402.18668, section 4.1). Every map works on the last axis and in the dtype of its input.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Features that may be zero by rounding or by design are kept at least this large.
SMALLEST_FEATURE = 1e-12


def elu_features(x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
    """``elu(x) + 1``: ``x + 1`` to the right of zero and ``exp(x)`` to the left (arXiv:2006.16236).

    Computed as such a sum, which stays positive where ``elu(x)`` rounds to -1.
    """
    return x.relu() + x.clamp_max(0).exp()


def relu_features(x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
    """``max(x, 1e-12)``."""
    return x.clamp_min(SMALLEST_FEATURE)


def squared_features(x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest dim"]:
    """``x^2 / sqrt(2)``: the second-order terms of the Taylor features without the mixed ones."""
    return x.square() * math.sqrt(0.5)


def all_taylor_features(x: Float[Tensor, "*rest dim"]) -> Float[Tensor, "*rest features"]:
    """``[1, x / f^(1/4), vec(x x^T) / sqrt(2 f)]``: ``1 + f + f^2`` features, symmetric terms twice.

    Their products are those of :func:`~gatework.ops.recurrence.taylor_attention.taylor_features`, which keeps
    each symmetric term once and is what Based computes with.
    """
    x = x * x.shape[-1] ** -0.25
    second = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * math.sqrt(0.5)
    return torch.cat([torch.ones_like(x[..., :1]), x, second], -1)


def cosformer_features(
    x: Float[Tensor, "batch heads length dim"], positions: Int[Tensor, "batch length"], max_length: int
) -> Float[Tensor, "batch heads length features"]:
    """``[relu(x) sin a_t, relu(x) cos a_t]`` with ``a_t = pi/2 (t + 1) / max_length`` (arXiv:2202.08791).

    Products of two tokens carry the cosine of the difference of their angles, which is what makes near
    tokens weigh more. Tokens from ``max_length`` on all have the angle of the last one, ``pi/2``: wider
    angles would make weights negative.

    Args:
        x: Queries or keys.
        positions: Position ``t`` of every token, the first one at 0.
        max_length: Number of tokens that the quarter turn is spread over. The authors take the length of the
            sequence at hand, which is not known while decoding.
    """
    turns = ((positions + 1).to(x.dtype) / max_length).clamp_max(1.0)
    angles = (math.pi / 2 * turns)[:, None, :, None]
    x = x.relu()
    return torch.cat([x * angles.sin(), x * angles.cos()], -1)


def performer_features(
    x: Float[Tensor, "*rest dim"], random_feats: Float[Tensor, "features dim"]
) -> Float[Tensor, "*rest features"]:
    """``exp(w_i . z - |z|^2 / 2) / sqrt(features)`` with ``z = x / f^(1/4)`` (FAVOR+, arXiv:2009.14794).

    One exponent for both terms is at most ``|w_i|^2 / 2``, so that no input overflows.
    """
    z = x * x.shape[-1] ** -0.25
    exponents: Tensor = z @ random_feats.mT - z.square().sum(-1, keepdim=True) / 2
    return exponents.exp() / math.sqrt(random_feats.shape[0])


def all_poly_features(
    x: Float[Tensor, "*rest dim"],
    of_x: Float[Tensor, "features dim"],
    of_squares: Float[Tensor, "features dim"],
) -> Float[Tensor, "*rest features"]:
    """``((W1 x)^2 + W2 x^2) / sqrt(2)``: learned combinations of second-order terms."""
    return ((x @ of_x.mT).square() + x.square() @ of_squares.mT) * math.sqrt(0.5)


def exp_features(
    x: Float[Tensor, "*rest dim"], *, both_signs: bool = True
) -> Float[Tensor, "*rest features"]:
    """``exp(max([x, -x], 1e-12))``, or ``exp(x)`` without ``both_signs``. Overflows where ``x`` is large."""
    return (_both_signs(x) if both_signs else x).exp()


def exp_max_norm_features(
    x: Float[Tensor, "*rest dim"], *, both_signs: bool = True
) -> Float[Tensor, "*rest features"]:
    """:func:`exp_features` of ``x`` minus its largest channel."""
    return exp_features(x - x.amax(-1, keepdim=True), both_signs=both_signs)


def softmax_features(
    x: Float[Tensor, "*rest dim"], *, both_signs: bool = True
) -> Float[Tensor, "*rest features"]:
    """``[softmax(x), softmax(-x)]`` over the channels, at least 1e-12; or only the first half."""
    halves = [x.softmax(-1), (-x).softmax(-1)] if both_signs else [x.softmax(-1)]
    return torch.cat(halves, -1).clamp_min(SMALLEST_FEATURE)


def exp_sum_norm_features(
    x: Float[Tensor, "*rest dim"], *, both_signs: bool = True
) -> Float[Tensor, "*rest features"]:
    """``softmax(|x|)`` where ``x >= 0`` beside the same where ``x < 0``, else 1e-12.

    The two features of a channel are neighbours; without ``both_signs`` only the first is kept.
    """
    weights = x.abs().softmax(-1)
    features = weights * (x >= 0)
    if both_signs:
        features = torch.stack([features, weights * (x < 0)], -1).flatten(-2)
    return features.clamp_min(SMALLEST_FEATURE)


def orthogonal_random_features(num_features: int, dim: int) -> Float[Tensor, "features dim"]:
    """Draw the random directions of :func:`performer_features`: rows of orthogonal matrices.

    Rows come in blocks of ``dim`` that are orthogonal to each other, and have length
    ``sqrt(dim / num_features)`` as the authors of Zoology scale them.
    """
    blocks = [torch.linalg.qr(torch.randn(dim, dim)).Q.T for _ in range(-(-num_features // dim))]
    return torch.cat(blocks)[:num_features] * math.sqrt(dim / num_features)


def _both_signs(x: Tensor) -> Tensor:
    return torch.cat([x, -x], -1).clamp_min(SMALLEST_FEATURE)
