"""Every registered mixer on a GPU computes what it computes on the CPU, where its own tests check it."""

from __future__ import annotations

import copy

import pytest
import torch

from _engine_cases import farthest
from gatework.registry import mixer_entry
from tests.layers.sequence.test_every_mixer import DIM, OPTIONS, make

pytestmark = pytest.mark.gpu

LENGTH = 40
#: Which tokens they look at depends on comparisons, which rounding may decide otherwise.
CHOOSES = {"nsa", "sigmoid_lookups"}
#: Dtype: how far outputs and gradients may lie from those of the CPU in float64, as a share of the largest.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.15}


def told(mixer, device):
    """The token ids that some mixers read, by keyword."""
    if not mixer.reads_tokens:
        return {}
    return {"tokens": torch.randint(5, (2, LENGTH), generator=torch.Generator().manual_seed(1)).to(device)}


def both_ways(mixer, x, weights):
    """Outputs, and gradients of inputs and parameters; of no parameter that the outputs do not depend on."""
    x = x.clone().requires_grad_()
    y = mixer(x, **told(mixer, x.device))
    leaves = [x, *(each for each in mixer.parameters() if each.requires_grad)]
    grads = torch.autograd.grad(y, leaves, weights.to(y), allow_unused=True, materialize_grads=True)
    return [y], list(grads)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).split(".")[1])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward_and_backward(name, dtype, device):
    if name in CHOOSES and dtype == torch.bfloat16:
        pytest.skip("rounding to bfloat16 decides which tokens it looks at")
    mixer = make(name, OPTIONS[name][0]).to(dtype)
    x, weights = (torch.randn(2, LENGTH, DIM, dtype=torch.float64) for _ in range(2))
    x = x.to(dtype)
    moved = copy.deepcopy(mixer).to(device)
    ours, our_grads = both_ways(moved, x.to(device), weights.to(device))
    right, right_grads = both_ways(mixer.double(), x.double(), weights)
    assert ours[0].device.type == device
    assert farthest(ours, right) <= TOLERANCES[dtype]
    assert farthest(our_grads, right_grads) <= 3 * TOLERANCES[dtype]


@torch.no_grad()
@pytest.mark.parametrize("name", OPTIONS)
def test_prefill_and_steps_are_the_whole_sequence(name, device):
    mixer = make(name, OPTIONS[name][0]).to(device)
    x = torch.randn(2, LENGTH, DIM, dtype=torch.float64).to(device)
    tokens = told(mixer, device)
    whole = mixer(x, **tokens)

    def piece(cut):
        return {key: value[:, cut] for key, value in tokens.items()}

    first = slice(0, LENGTH - 5)
    y, state = mixer.prefill(x[:, first], **piece(first))
    assert {tensor.device.type for tensor in state.values()} <= {device}
    outputs = [y]
    for at in range(LENGTH - 5, LENGTH):
        y, state = mixer.step(x[:, at], state, **piece(at))
        outputs.append(y.unsqueeze(1))
    assert farthest([torch.cat(outputs, 1)], [whole.cpu()]) <= 1e-8


def test_every_mixer_is_here():
    assert all(mixer_entry(name) for name in OPTIONS)
    assert len(OPTIONS) >= 25
