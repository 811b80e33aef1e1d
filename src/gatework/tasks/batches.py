"""Batches of any form: tensors in tuples, named tuples, mappings, lists or dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from tqdm import tqdm

from gatework.tasks.module import TaskModule


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield every tensor of a batch, in the order of its parts."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors_of(part)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from tensors_of(part)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from tensors_of(getattr(batch, field.name))


def num_examples(batch: Any) -> int:
    """Return the size of the first axis of a batch's first tensor.

    Raises:
        TypeError: If the batch holds no tensor with an axis.
    """
    first = next(tensors_of(batch), None)
    if first is None or first.ndim == 0:
        raise TypeError(f"a batch must hold a tensor with an axis of examples, got {type(batch).__name__}")
    return first.shape[0]


def batch_shape(batch: Any) -> tuple[torch.Size, ...]:
    """Return the shapes of all tensors: batches of equal shapes cost the same."""
    return tuple(tensor.shape for tensor in tensors_of(batch))


def own_copy(batch: Any) -> Any:
    """Copy the tensors of a batch: one cut out of a data set shares the memory of the whole."""
    return apply_to_collection(batch, Tensor, torch.clone)


def predict_batches(module: TaskModule, batches: Iterable[Any], *, bar: bool) -> Iterator[dict[str, Any]]:
    """Yield what a trained model makes of each example, see :meth:`TaskModule.predictions`."""
    total = len(batches) if isinstance(batches, Sized) else None
    progress = tqdm(total=total, desc="predict", unit="batch", disable=not bar, file=sys.stderr)
    with torch.inference_mode(), progress:
        for batch in batches:
            yield from module.predictions(module.transfer_batch_to_device(batch, module.device, 0))
            progress.update()
