"""Load weights from a file or a state dict, whichever of the known layouts they are in.

A model knows its own layout and, where it follows a publication, the authors': a method
``convert_official(state_dict)`` maps theirs to ours. Whatever does not fit is refused, by name.
Nothing here unpickles arbitrary objects.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

#: How many names of a kind an error message lists.
_MOST_NAMES = 5


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def load_checkpoint(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> None:
    """Load ``source`` into ``model``, in our layout or in that of the authors.

    Every tensor of the checkpoint must be used and every parameter and buffer of the model filled; tied
    weights may be stored once. Tensors are converted to the model's dtype and device. If anything is
    wrong, the model is left as it was.

    Args:
        model: The model to fill.
        source: A ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), or a
            state dict.

    Raises:
        CheckpointError: If the file cannot be read, or names or shapes do not fit; the message lists them.
    """
    state_dict = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"checkpoint entry {name!r} is a {type(tensor).__name__}, not a tensor")
    own = model.state_dict()
    convert = getattr(model, "convert_official", None)
    if not _names_fit(own, state_dict) and convert is not None:
        state_dict = convert(state_dict)
    state_dict = _fill_tied(own, state_dict)
    problems = _problems(own, state_dict)
    if problems:
        raise CheckpointError(f"checkpoint does not fit {type(model).__name__}: " + "; ".join(problems))
    model.load_state_dict(state_dict)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # that a file is odd is said by the error
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes fail in any way, also by IndexError or KeyError
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read safely: {type(error).__name__}: {reason}"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"checkpoint {str(path)!r} holds a {type(loaded).__name__}, not a state dict")
    return loaded


def _names_fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    return set(_fill_tied(own, given)) == set(own)


def _fill_tied(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the absent names of weights that share memory with one that is present."""
    filled = dict(given)
    stored = {tensor.data_ptr(): name for name, tensor in own.items() if name in given and tensor.numel() > 0}
    for name, tensor in own.items():
        if name not in filled and tensor.data_ptr() in stored:
            filled[name] = given[stored[tensor.data_ptr()]]
    return filled


def _problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} has shape {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if own[name].shape != given[name].shape
    ]
    problems = []
    for kind, names in (
        ("missing", sorted(own.keys() - given.keys())),
        ("unknown", sorted(given.keys() - own.keys())),
        ("of another shape", sorted(shapes)),
    ):
        if names:
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            problems.append(f"{len(names)} {kind}: " + ", ".join(names[:_MOST_NAMES]) + more)
    return problems
