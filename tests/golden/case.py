"""One golden file: what it stores, how our object is loaded from it, and how far outputs may lie apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

import gatework
from gatework.checkpoints import find_layout
from gatework.layouts import OWN, Layout


class Case:
    """The stored tensors of one file, with floating inputs in the dtype of this run.

    Attributes:
        kwargs: The official constructor's arguments.
        inputs: ``in/*`` by name; floating ones collect gradients.
        mode: ``"eval"``, ``"train"`` or ``"data"``.
        model: What :meth:`load` loaded last.
    """

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.kwargs: Any = json.loads(metadata["kwargs"])
        self.mode = metadata["mode"]
        self.dtype = dtype
        self.inputs = {
            name: tensor.to(dtype).requires_grad_() if tensor.is_floating_point() else tensor
            for name, tensor in self.part("in").items()
        }
        self.model: nn.Module | None = None
        self.layout = Layout(OWN)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below ``prefix/``."""
        return {
            name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + "/")
        }

    def load(self, model: nn.Module) -> nn.Module:
        """Fill ``model`` with ``state/*`` through the public loader and set its mode."""
        model.to(self.dtype)
        gatework.load_checkpoint(model, self.part("state"))
        self.layout = find_layout(model, self.part("state"))
        self.model = model.train(self.mode == "train")
        return model

    def backward(self, outputs: Mapping[str, Tensor]) -> None:
        """Backpropagate the sum of ``out * cot``, or the loss of files that store none."""
        cotangents = self.part("cot")
        if not cotangents and "loss" in outputs:
            cotangents = {"loss": torch.ones(())}
        total = sum((outputs[name] * cot.to(self.dtype)).sum() for name, cot in cotangents.items())
        total.backward()

    @cached_property
    def converted(self) -> dict[str, list[tuple[str, Tensor, Tensor]]]:
        """What the stored gradients of parameters become, all converted at once.

        By their name: ours, its stored gradient, and which of its numbers come of theirs.
        """
        stored = {
            name.removeprefix("state/"): tensor
            for name, tensor in self.part("grad").items()
            if name not in self.inputs
        }
        converted = self.layout.to_ours(stored)
        labels, origins = self.layout.origins({name: tensor.shape for name, tensor in stored.items()})
        becomes: dict[str, list[tuple[str, Tensor, Tensor]]] = {name: [] for name in stored}
        for ours, tensor in converted.items():
            for label in labels[ours].unique().tolist():
                for theirs in origins[label]:
                    becomes[theirs].append((ours, tensor, labels[ours] == label))
        return becomes

    def gradient(self, name: str) -> tuple[Tensor | None, Tensor]:
        """Our gradient and the stored one for ``grad/<name>``, both in our layout.

        Where their tensor is part of one of ours, or becomes several, the numbers that come of it, in a row.
        """
        if name in self.inputs:
            return self.inputs[name].grad, self.part("grad")[name]
        assert self.model is not None, f"grad/{name} is of a parameter, but no model was loaded"
        becomes = self.converted[name.removeprefix("state/")]
        assert becomes, f"grad/{name} becomes nothing in layout {self.layout.name!r}"
        pairs = []
        for ours, stored, mask in becomes:
            gradient = self.model.get_parameter(ours).grad
            if gradient is None or gradient.shape != stored.shape:
                return gradient, stored
            pairs.append((gradient, stored) if mask.all() else (gradient[mask], stored[mask]))
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([own.flatten() for own, _ in pairs]), torch.cat([own.flatten() for _, own in pairs])


Adapter = Callable[[Case], Mapping[str, Tensor]]


def relative_error(ours: Tensor, stored: Tensor) -> float:
    """``max|a - b| / max(1e-3, max|b|)``; infinite where shapes, or exact values of integers, differ."""
    if ours.shape != stored.shape:
        return float("inf")
    if not stored.is_floating_point():
        return (
            0.0
            if torch.equal(ours.to(stored.dtype), stored) and not ours.is_floating_point()
            else float("inf")
        )
    if stored.numel() == 0:
        return 0.0
    ours, stored = ours.detach().double(), stored.double()
    return float((ours - stored).abs().max() / stored.abs().max().clamp_min(1e-3))
