"""Feature maps against their formulas, channel by channel, and what they promise about signs and ranges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.layers.sequence.feature_maps import FEATURE_MAPS, FeatureMap
from gatework.ops import feature_maps as maps
from gatework.ops.recurrence.taylor_attention import taylor_features

DOUBLE = torch.float64
TINY = 1e-12


def exponents(x, signs):
    return [math.exp(max(value, TINY)) for sign in signs for value in (sign * element for element in x)]


def softmax(x):
    total = sum(math.exp(value) for value in x)
    return [math.exp(value) / total for value in x]


def exp_sum_norm(x):
    weights = softmax([abs(value) for value in x])
    pairs = [(w if v >= 0 else 0.0, w if v < 0 else 0.0) for v, w in zip(x, weights, strict=True)]
    return [max(value, TINY) for pair in pairs for value in pair]


#: The features of one token with channels ``x`` (a list), by the name of the map.
FORMULAS = {
    "identity": lambda x: x,
    "elu": lambda x: [value + 1 if value > 0 else math.exp(value) for value in x],
    "relu": lambda x: [max(value, TINY) for value in x],
    "square": lambda x: [value**2 for value in x],
    "squared": lambda x: [value**2 / math.sqrt(2) for value in x],
    "taylor": lambda x: [
        1.0,
        *(value / len(x) ** 0.25 for value in x),
        *(a * b / math.sqrt(2 * len(x)) for a in x for b in x),
    ],
    "exp_dim": lambda x: exponents(x, (1, -1)),
    "exp_max_norm": lambda x: exponents([value - max(x) for value in x], (1, -1)),
    "softmax_dim": lambda x: [max(v, TINY) for v in softmax(x) + softmax([-value for value in x])],
    "exp_sum_norm": exp_sum_norm,
}
WITH_PARAMETERS = {"cosformer", "performer", "all_poly"}


def test_every_map_has_a_formula_here():
    assert FORMULAS.keys() | WITH_PARAMETERS == set(FEATURE_MAPS)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=st.integers(0, 3),
    dim=st.integers(1, 5),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_maps_are_their_formulas(name, batch, length, dim, scale, seed):
    x = 2 * torch.randn(batch, 2, length, dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    phi = FeatureMap(name, dim, input_scale=scale)
    y = phi(x)
    assert y.shape == (batch, 2, length, phi.num_features)
    expected = [FORMULAS[name]((scale * row).tolist()) for row in x.flatten(0, 2)]
    torch.testing.assert_close(
        y.flatten(0, 2), torch.tensor(expected, dtype=DOUBLE).view(-1, phi.num_features), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", ["exp_dim", "exp_max_norm", "softmax_dim", "exp_sum_norm"])
def test_one_sign_is_a_part_of_both(name):
    x = torch.randn(2, 3, 4, 5, dtype=DOUBLE)
    both, one = FeatureMap(name, 5)(x), FeatureMap(name, 5, both_signs=False)(x)
    if name == "softmax_dim":
        assert torch.equal(one, both[..., :5])
    elif name == "exp_sum_norm":
        assert torch.equal(one, both[..., ::2])
    else:  # both signs are cut off at zero before the exponential, one is not
        shifted = x - x.amax(-1, keepdim=True) if name == "exp_max_norm" else x
        torch.testing.assert_close(one, shifted.exp())


def test_all_poly_is_its_formula():
    phi = FeatureMap("all_poly", 3, num_features=4).double()
    x = torch.randn(3, dtype=DOUBLE)
    first, second = phi.proj_1.weight, phi.proj_2.weight
    expected = [
        (sum(first[i, c] * x[c] for c in range(3)) ** 2 + sum(second[i, c] * x[c] ** 2 for c in range(3)))
        / math.sqrt(2)
        for i in range(4)
    ]
    torch.testing.assert_close(phi(x[None, None, None])[0, 0, 0], torch.stack(expected))


def test_performer_is_its_formula_and_never_overflows():
    phi = FeatureMap("performer", 3, num_features=7).double()
    x = torch.randn(3, dtype=DOUBLE)
    z = x / 3**0.25
    feats = phi.random_feats
    expected = [math.exp(-(z @ z) / 2) * math.exp(feats[i] @ z) / math.sqrt(7) for i in range(7)]
    torch.testing.assert_close(phi(x[None, None, None])[0, 0, 0], torch.tensor(expected, dtype=DOUBLE))
    huge = FeatureMap("performer", 3)(1e4 * torch.randn(1, 1, 50, 3))
    assert huge.isfinite().all()


def test_random_directions_are_orthogonal_in_blocks():
    feats = maps.orthogonal_random_features(10, 4).double()
    for start in (0, 4, 8):
        block = feats[start : start + 4]
        torch.testing.assert_close(
            block @ block.T, 0.4 * torch.eye(len(block), dtype=DOUBLE), atol=1e-6, rtol=0
        )


def test_cosformer_products_carry_the_cosine_of_the_distance():
    phi, length, size = FeatureMap("cosformer", 3, max_length=6), 6, 3
    q, k = torch.randn(2, 1, 1, length, size, dtype=DOUBLE)
    products = (phi(q) @ phi(k).mT)[0, 0]
    for i in range(length):
        for j in range(length):
            expected = q[0, 0, i].relu() @ k[0, 0, j].relu() * math.cos(math.pi / 2 * (i - j) / 6)
            torch.testing.assert_close(products[i, j], expected, atol=1e-12, rtol=0)


def test_cosformer_angles_stay_at_the_last_one():
    phi = FeatureMap("cosformer", 2, max_length=4)
    y = phi(torch.ones(1, 1, 9, 2, dtype=DOUBLE))
    torch.testing.assert_close(y[:, :, 3:], y[:, :, 3:4].expand(-1, -1, 6, -1))
    assert (y @ y.mT).min() > -1e-12
    positions = torch.tensor([[2, 3], [0, 7]])
    at = phi(torch.ones(2, 1, 2, 2, dtype=DOUBLE), positions)
    torch.testing.assert_close(at[:, 0], y[0, 0, positions])


def test_taylor_products_are_those_of_symmetric_features():
    q, k = torch.randn(2, 6, 5, dtype=DOUBLE)
    every = maps.all_taylor_features(q) @ maps.all_taylor_features(k).mT
    torch.testing.assert_close(every, taylor_features(q) @ taylor_features(k).mT)


def test_elu_features_stay_positive():
    assert (maps.elu_features(torch.tensor([-60.0, -20.0, 0.0, 5.0])) > 0).all()


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_gradients_and_precision(name):
    phi = FeatureMap(name, 3, max_length=5).double()
    x = torch.randn(1, 2, 3, 3, dtype=DOUBLE).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(phi, x)
    half = x.detach().to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = phi.float()(half)
    assert y.dtype == torch.float32  # sums over many tokens follow
    torch.testing.assert_close(y, phi.double()(half.double()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tanh", {}, "feature_map must be one of identity, .*, got 'tanh'"),
        ("elu", {"num_features": 4}, "num_features is for feature_map 'performer' or .*got 4 for 'elu'"),
        ("performer", {"num_features": 0}, "num_features must be at least 1, got 0"),
        ("relu", {"both_signs": False}, "both_signs=False is for feature_map exp_dim, .*, got 'relu'"),
        ("cosformer", {"max_length": 0}, "max_length must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureMap(name, 3, **options)
