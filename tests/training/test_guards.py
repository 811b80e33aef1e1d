"""A loss or a gradient that is not finite stops a training before the update, and says where."""

from __future__ import annotations

import math

import pytest
import torch

from gatework import tasks
from gatework.training.fit import fit
from tests.training.runs import NoisyRecall, recipe


class Poison(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.nan


class Poisoned(NoisyRecall):
    """A task whose model breaks in step 6."""

    kind = "loss"

    def module(self, model, training, learning_rate):
        module = super().module(model, training, learning_rate)
        layer, kind = model.model.layers[0].mixer, type(self).kind

        def spoil(_, inputs, output):
            if module._trainer is None or not model.training or module.global_step < 5:
                return output
            return output * math.nan if kind == "loss" else Poison.apply(output)

        layer.register_forward_hook(spoil)
        return module


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", "loss is nan at step 6;"),
        ("gradient", "gradient norm is nan at step 6, from model.model.embed_tokens.weight, model."),
    ],
)
def test_the_update_is_not_made(tmp_path, capsys, monkeypatch, kind, message):
    monkeypatch.setitem(tasks.TASKS, "noisy", Poisoned)
    monkeypatch.setattr(Poisoned, "kind", kind)
    spoiled = recipe(trainer={"checkpoint_every": 1})
    weights = {}
    monkeypatch.setattr("gatework.training.fit.ExactResume.on_exception", keep(weights), raising=False)
    assert fit(spoiled, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "the update was not made" in error
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["gatework"]["step"] == 5
    assert weights
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved["state_dict"].items())
    assert not (tmp_path / "run" / "result.json").exists()


def keep(weights):
    def on_exception(self, trainer, module, exception):
        weights.update({name: tensor.clone() for name, tensor in module.state_dict().items()})

    return on_exception
