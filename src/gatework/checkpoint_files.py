"""Weights from files, read without trust: nothing is executed, and memory is bounded by the file's length.

Files of safetensors and of ``torch.save``, alone or in several shards with an index, folders that hold them,
and the dicts that training programs wrap weights in.
"""

from __future__ import annotations

import argparse
import math
import os
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gatework.files import FileError, read_json

#: What a folder of weights holds, the first that is there.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: Under which names training programs store weights, in this order in messages.
ENTRIES = ("state_dict", "model_state_dict", "model", "module", "state_dict_ema", "model_ema", "ema")

_INDEX = ".index.json"
#: Where the types torch.FloatTensor, torch.cuda.HalfTensor, … are.
_OLD_TENSORS = ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
_MOST_HEADER_BYTES = 16 * 2**20  # of safetensors: more than 100,000 tensors
_MOST_NAME = 1000
_MOST_WRAPPERS = 4
#: Tensors may share memory, as tied weights do, but not pretend to be much larger than the file.
_MOST_TIMES_FILE, _MOST_MORE = 4, 16 * 2**20


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def read_weights(path: Path, *, entry: str | None = None) -> dict[str, Tensor]:
    """Read the weights in a file, an index of shards, or a folder with either.

    Args:
        path: ``.safetensors``, an index (``….index.json``), a folder with one of :data:`FOLDER_FILES`, or
            else a file of ``torch.save``.
        entry: Which of several sets of weights in a file, such as ``"model_ema"``.

    Raises:
        CheckpointError: If it cannot be read safely, is incomplete, or holds no weights.
    """
    if path.is_dir():
        held = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not held:
            raise CheckpointError(
                f"checkpoint {str(path)!r} is not a file, nor a folder with one of {', '.join(FOLDER_FILES)}"
            )
        path = held[0]
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    if path.name.endswith(_INDEX):
        loaded: Any = _read_shards(path)
    else:
        loaded = _read_file(path)
    return weights_in(loaded, f"checkpoint {str(path)!r}", entry=entry)


def weights_in(loaded: Any, where: str = "checkpoint", *, entry: str | None = None) -> dict[str, Tensor]:
    """Return the weights in what a file holds: a state dict, or a dict of a training program around it.

    Args:
        loaded: What was read, or a caller's state dict.
        where: What it is called in messages.
        entry: Which of several sets of weights.

    Raises:
        CheckpointError: If there are none, or several and no ``entry`` says which.
    """
    names = [entry] if entry is not None else []
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(loaded, Mapping):
            raise CheckpointError(f"{where} holds a {type(loaded).__name__}, not a state dict")
        held = [name for name in ENTRIES if isinstance(loaded.get(name), Mapping) and loaded[name]]
        if names and names[0] in loaded:
            loaded = loaded[names.pop()]
        elif isinstance(loaded.get("gatework"), Mapping) and "state_dict" in held:
            loaded = _model_of_training(loaded["state_dict"])  # ours: whatever else it holds is not the model
        elif len(held) > 1:
            choices = " or ".join(f"entry={name!r}" for name in held)
            raise CheckpointError(f"{where} holds several sets of weights: choose with {choices}")
        elif held:
            loaded = loaded[held[0]]
        else:
            break
    if names:
        raise CheckpointError(f"{where} has no entry {names[0]!r}")
    return _checked_tensors(loaded, where)


def _model_of_training(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the model alone from a checkpoint of its training by ``gatework fit``."""
    return {
        name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")
    }


def _checked_tensors(loaded: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in loaded.items():
        if not isinstance(name, str) or len(name) > _MOST_NAME:
            raise CheckpointError(f"{where} has an entry {str(name)[:40]!r}, which is no name of a tensor")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"checkpoint entry {name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise CheckpointError(
                f"checkpoint entry {name!r} is a {kind} tensor, not one that holds its numbers"
            )
        tensors[name] = tensor.detach()
    others = [name for name in tensors if name != "n_averaged"]
    if others and all(name.startswith("module.") for name in others):
        tensors.pop("n_averaged", None)  # how many weights torch.optim.swa_utils has averaged
    return tensors


def read_torch_file(path: Path, *, only_archives: bool = False) -> Any:
    """Read a file of ``torch.save`` on the CPU.

    Nothing in it is executed: ``weights_only=True``, plus plain ``argparse.Namespace`` objects. Of an archive
    every byte is compared with the checksums that were written with it.

    Args:
        path: The file.
        only_archives: Refuse the format from before PyTorch 1.6, which has no checksums.

    Raises:
        CheckpointError: If it is no such file, is damaged, or would unpack to more than it is.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {str(path)!r} is not a file")
    try:
        if only_archives or zipfile.is_zipfile(path):
            _check_archive(path)
        else:
            _check_old_format(path)
        with (
            warnings.catch_warnings(action="ignore"),  # that a file is odd is said by the error
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes fail in any way, also by IndexError or KeyError
        raise _unreadable(path, error) from error
    _check_sizes(path, loaded)
    return loaded


def _read_file(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(_MOST_HEADER_BYTES, path.stat().st_size - 8):
            raise ValueError(f"its header claims {header:,} bytes")
        return load_file(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [""])[0]
    return CheckpointError(
        f"checkpoint {str(path)!r} cannot be read safely: {type(error).__name__}: {reason}"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors of the files that an index names, which lie beside it."""
    try:
        files = read_json(index, remedy="it should list the shards of a checkpoint").get("weight_map")
    except FileError as error:
        raise CheckpointError(f"checkpoint index {error}") from error
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"checkpoint index {str(index)!r} has no 'weight_map' of names to files")
    weights: dict[str, Tensor] = {}
    for file in dict.fromkeys(files.values()):
        if (
            file in ("", "..")
            or PurePosixPath(file).name != file
            or os.path.basename(file) != file
            or "\\" in file
        ):
            raise CheckpointError(f"checkpoint index {str(index)!r} names {file!r}, outside its folder")
        path = index.parent / file
        if not path.is_file():
            raise CheckpointError(f"checkpoint {str(index)!r} is incomplete: its shard {file} is missing")
        shard = weights_in(_read_file(path), f"checkpoint {str(path)!r}")
        wanted = {name for name, home in files.items() if home == file}
        if shard.keys() != wanted:
            name = min(shard.keys() ^ wanted)
            where = "is not in" if name in wanted else "is in, but should not be in,"
            raise CheckpointError(f"checkpoint index {str(index)!r} is wrong: {name} {where} {file}")
        weights |= shard
    return weights


def _check_archive(path: Path) -> None:
    """Compare all checksums, which PyTorch does not, and refuse what would unpack to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("it holds compressed data, which no checkpoint does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise zipfile.BadZipFile("it holds more than its size")
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    for _ in _operations(file):
                        pass


def _check_old_format(path: Path) -> None:
    """Refuse a file from before PyTorch 1.6 whose tensors would be larger than it is.

    It begins with four pickles: a magic number, a version, the system, and the object, whose storages are
    ``("storage", type, key, device, length, None)``; the lengths are asked for before they are read.
    """
    size, claimed = path.stat().st_size, 0
    with open(path, "rb") as file:
        for _ in range(4):
            last: list[tuple[str, Any]] = []
            for name, argument in _operations(file):
                if name == "BINPERSID":
                    kinds = [kind for kind, _ in last[-3:]]
                    if kinds[1:] != ["NONE", "TUPLE"] or not isinstance(last[-3][1], int):
                        raise ValueError("it describes storages as PyTorch does not")
                    claimed += last[-3][1]
                    if claimed > 2 * size:
                        raise ValueError(f"its tensors claim more than its {size:,} bytes")
                if "PUT" not in name and name != "MEMOIZE":
                    last = [*last[-2:], (name, argument)]


def _operations(file: Any) -> Iterator[tuple[str, Any]]:
    """The operations of one pickle, which is not executed.

    Raises:
        ValueError: If it names a type that is made by its size alone: it would take any amount of memory.
    """
    for operation, argument, _ in pickletools.genops(file):
        if isinstance(argument, str):
            module, _, kind = argument.rpartition(" ")
            # torch.Tensor itself is in honest files, as the type of tensors with attributes; one that is made
            # by its size takes no memory before it is written to, and _check_sizes refuses it.
            old_tensor = module in _OLD_TENSORS and kind.endswith("Tensor") and argument != "torch Tensor"
            if kind == "bytearray" or old_tensor:
                raise ValueError(f"it makes a {kind}, which no weights need")
        yield operation.name, argument


def _check_sizes(path: Path, loaded: Any) -> None:
    """Refuse tensors that are larger than the file they come from, as views that repeat one number can be."""
    total, left = 0, [loaded]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            total += math.prod(value.shape) * value.element_size()
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value
    size = path.stat().st_size
    if total > _MOST_TIMES_FILE * size + _MOST_MORE:
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be read safely: its {size:,} bytes claim tensors of {total:,}"
        )
