"""What masks are built from: checked numbers, and tensors that are compared by their numbers."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Table:
    """A tensor that is a value: equal if shape, dtype and numbers are, hashable, never changed.

    Args:
        tensor: The numbers; copied, to the CPU.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().to("cpu", copy=True).contiguous()
        self._elsewhere: dict[torch.device, Tensor] = {}
        content = hashlib.blake2b(self.tensor.numpy().tobytes(), digest_size=16).digest()
        self._identity = (tuple(self.tensor.shape), self.tensor.dtype, content)

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor on a device; copies stay there for the next time."""
        if device == self.tensor.device:
            return self.tensor
        found = self._elsewhere.get(device)
        if found is None:
            found = self.tensor.to(device)
            if not torch.compiler.is_compiling():  # what a compiler sees is no tensor yet
                self._elsewhere[device] = found
        return found

    def __eq__(self, other: object) -> bool:
        return self._identity == other._identity if isinstance(other, Table) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        share = f", {int(self.tensor.sum())} true" if self.tensor.dtype == torch.bool else ""
        return f"<{dtype} tensor {tuple(self.tensor.shape)}{share}>"


def keep(value: object, **fields: object) -> None:
    """Set fields of a frozen value that is being built."""
    for name, field in fields.items():
        object.__setattr__(value, name, field)
