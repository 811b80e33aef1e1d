"""Checkpoints on disk: written whole or not at all, read without executing anything, broken ones named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from gatework.checkpoint_files import CheckpointError, read_torch_file
from gatework.files import replacing

#: What every checkpoint of a training holds, and of what type.
_PARTS = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "gatework": dict,
    "losses": list,
}


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to disk, through :func:`gatework.files.replacing` and :func:`read_checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` so that ``path`` holds the old one or all of the new."""
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint of a training."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that ``fit`` has written, on the CPU.

    Nothing in the file is executed, and every byte of its content is checked against the checksums that were
    written with it: a file that differs in one bit is refused, or gives the very same numbers.

    Raises:
        CheckpointError: If the file cannot be read, is damaged, or is no checkpoint of a training.
    """
    loaded: dict[str, Any] = read_torch_file(path, only_archives=True)
    for name, kind in _PARTS.items():
        if not isinstance(loaded, dict) or not isinstance(loaded.get(name), kind):
            raise CheckpointError(
                f"checkpoint {str(path)!r} is not one of `gatework fit`: it has no {name!r}"
            )
    return loaded
