"""Remembered filters are never those of other weights."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from gatework.layers.sequence.filter_cache import FilterCache


class Filter(nn.Module):
    """A filter of ``tanh(t * weight)`` that counts how often it is computed."""

    def __init__(self, channels=3, max_length=500):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1, channels))
        self.max_length = max_length
        self.cache = FilterCache()
        self.computed = 0

    def compute(self, length):
        self.computed += 1
        return torch.tanh(torch.arange(length) * self.weight[:, None])

    def forward(self, length):
        return self.cache.taps(length, self.compute, sources=[self.weight], max_length=self.max_length)


@pytest.fixture
def made():
    return Filter().requires_grad_(False)


def check(made, length=20):
    expected = torch.tanh(torch.arange(length) * made.weight[:, None])
    assert torch.equal(made(length), expected)


def test_it_is_computed_once(made):
    for _ in range(3):
        check(made)
    assert made.computed == 1


def test_decoding_computes_few_filters(made):
    for length in range(1, 501):
        check(made, length)
    assert made.computed <= 5
    check(made, 600)  # more than the longest, once


CHANGES = {
    "in place": lambda made: made.weight.add_(1),
    "through .data": lambda made: made.weight.data.mul_(2),  # leaves the version as it was
    "one number": lambda made: made.weight.data[1].zero_(),
    "through a view of its memory": lambda made: made.weight.detach().numpy().fill(0.3),
    "loaded": lambda made: made.load_state_dict({"weight": torch.rand(3)}),
    "assigned": lambda made: made.load_state_dict({"weight": torch.rand(3)}, assign=True),
    "cast": lambda made: made.double(),
    "cast down": lambda made: made.bfloat16(),
    "another object": lambda made: setattr(made, "weight", nn.Parameter(torch.rand(3), requires_grad=False)),
    "more channels": lambda made: setattr(made, "weight", nn.Parameter(torch.rand(5), requires_grad=False)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_changed_weights_are_noticed(made, change, inference):
    with torch.inference_mode(inference):
        check(made)
    with torch.no_grad():
        CHANGES[change](made)
    with torch.inference_mode(inference):
        assert made(20).dtype == made.weight.dtype
        check(made)
    assert made.computed == 2


def test_other_weights_of_a_functional_call_are_noticed(made):
    check(made)
    other = torch.rand(3)
    taps = torch.func.functional_call(made, {"weight": other}, (20,))
    assert torch.equal(taps, torch.tanh(torch.arange(20) * other[:, None]))
    check(made)


def test_gradients_are_not_lost():
    made = Filter()
    with torch.no_grad():
        check(made)
    made(20).sum().backward()
    assert made.weight.grad is not None


def test_what_inference_mode_made_can_be_used_where_gradients_are_recorded(made):
    with torch.inference_mode():
        check(made)
    x = torch.ones(3, 20, requires_grad=True)
    (x * made(20)).sum().backward()
    assert torch.equal(x.grad, made(20))
    assert made.computed == 1


def test_weights_that_are_not_numbers_are_never_remembered(made):
    made.weight.data[0] = torch.nan
    assert made(20).isnan()[0].any()
    assert made(20).isnan()[0].any()
    assert made.computed == 2


@pytest.mark.parametrize("how", ["copy", "save"])
def test_copies_begin_empty(made, how):
    check(made)
    if how == "copy":
        other = copy.deepcopy(made)
    else:
        buffer = io.BytesIO()
        torch.save(made, buffer)
        assert buffer.tell() < 5000  # without the filter
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    other.weight.data.add_(1)
    check(other)
    check(made)
    assert list(other.state_dict()) == ["weight"]


@pytest.mark.compile
def test_it_compiles_to_one_graph(made):
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(20), torch.tanh(torch.arange(20) * made.weight[:, None]))
        made.weight.data.add_(1)


def test_fake_tensors_are_let_through(made):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made.weight = nn.Parameter(mode.from_tensor(torch.rand(3)), requires_grad=False)
        assert made(20).shape == (3, 20)
    assert made.cache._kept is None
