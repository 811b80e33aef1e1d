"""What the processes of one training tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning import Trainer

T = TypeVar("T")


def gather(trainer: Trainer, value: T) -> list[T]:
    """Return the ``value`` of every process, in their order; all must call it."""
    if trainer.world_size == 1:
        return [value]
    values: list[T] = [value] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def largest(trainer: Trainer, value: int) -> int:
    """Return the largest ``value`` of all processes; all must call it."""
    if trainer.world_size == 1:
        return value
    found = torch.tensor(value, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found.item())
