"""Cases with other arguments than the golden files have, written as such files and run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.golden import systems
from tests.golden.case import Case
from tests.golden.compare import compare

ADAPTERS, _ = systems.load_adapters()


class Maker:
    """Writes a case as a golden file and runs it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "case.safetensors"

    def write(self, kwargs: Any, *, mode: str = "eval", **parts: Mapping[str, Tensor]) -> Case:
        """A file with the tensors of ``inputs``, ``outputs``, ``state``, ``cotangents`` and ``gradients``."""
        names = {"inputs": "in", "outputs": "out", "cotangents": "cot", "gradients": "grad", "state": "state"}
        tensors = {
            f"{names[part]}/{name}": tensor.detach().contiguous().clone()
            for part, stored in parts.items()
            for name, tensor in stored.items()
        }
        save_file(tensors, self.path, {"kwargs": json.dumps(kwargs), "mode": mode})
        return Case(self.path, torch.float64)

    def compare(
        self,
        kind: str,
        kwargs: dict[str, Any],
        inputs: dict[str, Tensor],
        truth: Callable[[dict[str, Tensor]], dict[str, Tensor]],
        model: nn.Module | None = None,
    ) -> None:
        """The adapter of ``kind`` gives what ``truth`` does, and its gradients of inputs and parameters."""
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
        outputs = truth(leaves)
        of_outputs = outputs.keys() & {"y", "output", "out"}
        cotangents = {name: torch.randn_like(outputs[name]) for name in of_outputs}
        sum((outputs[name] * cotangents[name]).sum() for name in cotangents).backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        state = {} if model is None else dict(model.named_parameters())
        gradients |= {name: p.grad for name, p in state.items() if p.grad is not None}
        case = self.write(
            kwargs, inputs=inputs, outputs=outputs, cotangents=cotangents, gradients=gradients, state=state
        )
        self.check(kind, case)

    def check(self, kind: str, case: Case) -> None:
        """Hold the adapter of ``kind`` to what the case stores, in float64."""
        compare(case, ADAPTERS[kind], lambda name: 1e-9)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def sometimes(rng: random.Random, **options: Any) -> dict[str, Any]:
    """Some of the options: one that is left out has the official default."""
    return {name: value for name, value in options.items() if rng.random() < 0.6}
