"""Load weights from a file or a state dict, whichever of the known layouts they are in.

A model knows its own layout and lists those of others (:mod:`gatework.layouts`). Which one a checkpoint is
in is recognised by its names; whatever does not fit is refused, by name. Nothing unpickles arbitrary objects.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatework.checkpoint_files import CheckpointError, read_weights, weights_in
from gatework.layouts import OWN, Layout, Resize, layouts_of, matches

__all__ = ["CheckpointError", "Conversion", "convert_checkpoint", "find_layout", "load_checkpoint"]

#: How many names of a kind an error message lists.
_MOST_NAMES = 5


@dataclass(frozen=True)
class Conversion:
    """Weights in the layout of a model, and what became of those of a checkpoint.

    Attributes:
        layout: The layout the checkpoint is in.
        weights: Every tensor of the model by its name, but for tied copies and those that it keeps.
        given: Shapes of the checkpoint's tensors by their names, a prefix common to all taken off.
        ignored: Names of the checkpoint that have no counterpart in the model.
        resized: Position tables that were brought to another size: the shape they had.
        dropped: Names, in our layout, of the checkpoint's head, which was left out.
        kept: Names of the model that keep their own values.
        headless: Whether the head was left out.
    """

    layout: Layout
    weights: dict[str, Tensor]
    given: dict[str, tuple[int, ...]]
    ignored: tuple[str, ...]
    resized: dict[str, tuple[int, ...]]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    headless: bool

    def sources(self) -> dict[str, tuple[str, ...]]:
        """Return which tensors of the checkpoint each of :attr:`weights` is made of."""
        sources = self.layout.sources(self.given)
        return {name: sources.get(name, ()) for name in self.weights}


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    layout: str | None = None,
    resize_positions: bool = False,
    drop_head: bool = False,
    entry: str | None = None,
) -> None:
    """Load ``source`` into ``model``, in our layout or in one of those that the model lists.

    Every tensor of the checkpoint must be used, or ignored by its layout, and every parameter and buffer of
    the model filled; tied weights may be stored once. Tensors are converted to the model's dtype and device.
    If anything is wrong, the model is left as it was.

    Args:
        model: The model to fill.
        source: A ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), the index
            of a checkpoint in several files, a folder that holds one of these, a checkpoint of
            ``gatework fit``, or a state dict. Wrappers (``model``, ``state_dict``, …) and a prefix that all
            names share, such as ``module.``, are taken off.
        layout: Name of the layout it is in; recognised by default.
        resize_positions: Whether position tables of another size are resized, in the way of the layout.
        drop_head: Whether the head is left out, and the model keeps its own.
        entry: Which of several sets of weights in the file, such as ``"model_ema"``.

    Raises:
        CheckpointError: If the file cannot be read, no layout fits or several do, or names, shapes or kinds
            of numbers do not fit; the message lists them.
    """
    conversion = convert_checkpoint(
        model, source, layout=layout, resize_positions=resize_positions, drop_head=drop_head, entry=entry
    )
    if empty := [name for name, tensor in model.state_dict().items() if tensor.is_meta]:
        raise CheckpointError(
            f"{_name(model)} has no memory for {_listed(empty)}: call model.to_empty(device=...) first"
        )
    # All is checked: what is missing now is tied to what is there, or keeps its value.
    model.load_state_dict(conversion.weights, strict=False)


def convert_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    layout: str | None = None,
    resize_positions: bool = False,
    drop_head: bool = False,
    entry: str | None = None,
) -> Conversion:
    """Bring a checkpoint to the layout of ``model``, which is not changed; see :func:`load_checkpoint`.

    Raises:
        CheckpointError: Likewise.
    """
    given = (
        weights_in(source, entry=entry)
        if isinstance(source, Mapping)
        else read_weights(Path(source), entry=entry)
    )
    own = model.state_dict()
    chosen, prefix = _find(model, own, given, layout, drop_head=drop_head)
    given = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    if drop_head and not chosen.head:
        raise CheckpointError(f"drop_head=True: layout {chosen.name!r} of {_name(model)} names no head")
    weights = _converted(chosen, given)
    place = {name: index for index, name in enumerate(own)}
    weights = {
        name: weights[name] for name in sorted(weights, key=lambda name: (place.get(name, len(own)), name))
    }
    kept = {name for name in own if matches(chosen.keep, name) and name not in weights}
    dropped: tuple[str, ...] = ()
    if drop_head:
        dropped = tuple(name for name in weights if matches(chosen.head, name))
        weights = {name: tensor for name, tensor in weights.items() if name not in dropped}
        kept |= {name for name in own if matches(chosen.head, name)}
    resized = _resize(own, weights, chosen) if resize_positions else {}
    filled = _fill_tied(own, weights)
    kept -= filled.keys()
    needed = {name: tensor for name, tensor in own.items() if name not in kept}
    problems = _problems(needed, filled, chosen)
    if problems:
        verdict = _verdict(needed, filled, chosen)
        raise CheckpointError(f"checkpoint {verdict} {_name(model)}: {'; '.join(problems)}")
    return Conversion(
        chosen,
        weights,
        {name: tuple(tensor.shape) for name, tensor in given.items()},
        tuple(sorted(name for name in given if matches(chosen.ignore, name))),
        resized,
        dropped,
        tuple(name for name in own if name in kept),
        drop_head,
    )


def find_layout(model: nn.Module, names: Collection[str]) -> Layout:
    """Return the one layout of ``model`` that the names of a checkpoint are in.

    Raises:
        CheckpointError: If they fit none, or several.
    """
    return _find(model, model.state_dict(), dict.fromkeys(names, torch.empty(0)), None, drop_head=False)[0]


def _find(
    model: nn.Module,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    name: str | None,
    *,
    drop_head: bool,
) -> tuple[Layout, str]:
    """The layout of a checkpoint, and the prefix of all its names that has to go."""
    layouts = layouts_of(model)
    if name is not None:
        named = [layout for layout in layouts if layout.name == name]
        if not named:
            known = ", ".join(repr(layout.name) for layout in layouts)
            raise CheckpointError(f"layout {name!r} is none of {_name(model)}, which has {known}")
        layouts = (named[0],)
    prefixes = list(_prefixes(given))
    for loosely in (False, True):
        for prefix in prefixes:
            names = {name.removeprefix(prefix) for name in given}
            fitting = _fitting(layouts, own, names, drop_head=drop_head, loosely=loosely)
            if len(fitting) > 1:
                several = ", ".join(repr(layout.name) for layout in fitting)
                raise CheckpointError(
                    f"checkpoint fits several layouts of {_name(model)}: choose with layout=, of {several}"
                )
            if fitting:
                return fitting[0], prefix
    if name is not None:
        return layouts[0], prefixes[0]
    for layout in layouts:
        if layout.name != OWN and not layout.marks and not layout.missing(given):
            return layout, prefixes[0]
    raise CheckpointError(_nearest(model, layouts, own, set(given)))


def _prefixes(names: Collection[str]) -> Iterator[str]:
    """What all names may have before them: nothing, or the dotted beginnings that they share."""
    yield ""
    first, last = min(names, default=""), max(names, default="")
    end = 0
    while (end := first.find(".", end) + 1) and last.startswith(first[:end]):
        yield first[:end]


def _fitting(
    layouts: Sequence[Layout], own: Mapping[str, Tensor], names: set[str], *, drop_head: bool, loosely: bool
) -> list[Layout]:
    """The layouts that have the names as theirs; loosely, our own may have other numbers in them."""
    if not loosely:
        return [
            layout
            for layout in layouts
            if (
                _is_own(layout, own, names, drop_head=drop_head)
                if layout.name == OWN
                else layout.marks and not layout.missing(names)
            )
        ]
    return [layout for layout in layouts if layout.name == OWN and _unnumbered(names) == _unnumbered(own)]


def _is_own(layout: Layout, own: Mapping[str, Tensor], names: set[str], *, drop_head: bool) -> bool:
    head = layout.head if drop_head else ()
    names = {name for name in names if not matches((*layout.ignore, *head), name)}
    needed = {name for name in own if not matches((*layout.keep, *head), name)}
    return names <= own.keys() and needed <= _fill_tied(own, dict.fromkeys(names, torch.empty(0))).keys()


def _unnumbered(names: Collection[str]) -> set[str]:
    return {re.sub(r"\d+", "#", name) for name in names}


def _nearest(model: nn.Module, layouts: Sequence[Layout], own: Mapping[str, Tensor], names: set[str]) -> str:
    """Say which layout a checkpoint of none is nearest to, and what it lacks."""
    scores = {layout.name: 1 - len(layout.missing(names)) / max(1, len(layout.marks)) for layout in layouts}
    scores[OWN] = len(names & own.keys()) / max(1, len(names | own.keys()))
    nearest = max(layouts, key=lambda layout: scores[layout.name])
    only = len(layouts) == 1
    known = ", ".join(repr(layout.name) for layout in layouts)
    begin = f"checkpoint {'does not fit' if only else 'fits no layout of'} {_name(model)}"
    if nearest.name == OWN:
        lacks = "; ".join(
            _missing_and_unknown(own.keys(), _fill_tied(own, dict.fromkeys(names, torch.empty(0))).keys())
        )
    else:
        lacks = f"its marks {_listed(nearest.missing(names))} are missing"
    return (
        f"{begin}: {lacks}" if only else f"{begin}, which has {known}; nearest is {nearest.name!r}: {lacks}"
    )


def _converted(layout: Layout, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        weights = layout.to_ours(given)
    except Exception as error:  # tensors of a foreign shape make a conversion fail in any way
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"checkpoint cannot be converted from layout {layout.name!r}, perhaps of another size: {reason}"
        ) from error
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"layout {layout.name!r} makes a {type(tensor).__name__} of {name!r}, not a tensor"
            )
    return weights


def _resize(
    own: Mapping[str, Tensor], weights: dict[str, Tensor], layout: Layout
) -> dict[str, tuple[int, ...]]:
    """Resize, in place of ``weights``, the position tables that have another shape than ours."""
    resized = {}
    for name, tensor in weights.items():
        resize = _resize_of(layout, name)
        if resize is None or name not in own or tensor.shape == own[name].shape:
            continue
        try:
            changed = resize(tensor, tuple(own[name].shape))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"position table {name} cannot be resized: {reason}") from error
        resized[name] = tuple(tensor.shape)
        weights[name] = changed
    return resized


def _resize_of(layout: Layout, name: str) -> Resize | None:
    return next((resize for pattern, resize in layout.positions.items() if matches([pattern], name)), None)


def _fill_tied(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the absent names of weights that share memory with one that is present."""
    filled = dict(given)
    places = {
        name: tensor.data_ptr() for name, tensor in own.items() if tensor.numel() > 0 and not tensor.is_meta
    }
    stored = {place: name for name, place in places.items() if name in given}
    for name, place in places.items():
        if name not in filled and place in stored:
            filled[name] = given[stored[place]]
    return filled


def _problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """What does not fit, one text for each kind of it; for what an argument solves, which."""
    reshaped = {
        name: tensor for name, tensor in given.items() if name in own and tensor.shape != own[name].shape
    }
    tables = {name for name in reshaped if _resize_of(layout, name) is not None}
    odd = (own.keys() ^ given.keys()) | reshaped.keys()
    head = {name for name in odd if matches(layout.head, name)}
    problems = _missing_and_unknown(own.keys() - head, given.keys() - head)
    kinds = [
        f"{name} holds {_short(given[name].dtype)}, expected {_short(own[name].dtype)}"
        for name in sorted(own.keys() & given.keys())
        if _kind(own[name].dtype) != _kind(given[name].dtype)
    ]
    for what, names, remedy in (
        ("of another shape", reshaped.keys() - tables - head, ""),
        ("position tables of another shape", tables - head, " (resize_positions=True resizes them)"),
        ("of the head not as the model's", head, " (drop_head=True loads all but the head)"),
    ):
        if names:
            texts = [_difference(own, given, name) for name in sorted(names)]
            problems.append(f"{len(names)} {what}: {_listed(texts)}{remedy}")
    if kinds:
        problems.append(f"{len(kinds)} of another kind of numbers: {_listed(kinds)}")
    return problems


def _difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str) -> str:
    if name not in given:
        return f"{name} is missing"
    if name not in own:
        return f"{name} is unknown"
    return f"{name} has shape {tuple(given[name].shape)}, expected {tuple(own[name].shape)}"


def _missing_and_unknown(own: Collection[str], given: Collection[str]) -> list[str]:
    missing, unknown = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    kinds = (("missing", missing), ("unknown", unknown))
    return [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names]


def _verdict(own: Mapping[str, Tensor], given: Mapping[str, Tensor], layout: Layout) -> str:
    """Whether it is the same model of another size: shapes differ, or the numbers of blocks."""
    reshaped = any(
        given[name].shape != own[name].shape
        for name in own.keys() & given.keys()
        if _resize_of(layout, name) is None and not matches(layout.head, name)
    )
    deeper = own.keys() != given.keys() and _unnumbered(own) == _unnumbered(given)
    return "is of another size than" if reshaped or deeper else "does not fit"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "complex" if dtype.is_complex else "floating"
    return "boolean" if dtype == torch.bool else "integer"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(model: nn.Module) -> str:
    return type(model).__name__
