"""The layouts that weights come in: names and shapes of other implementations, and the way to ours.

A model, or a mixer, lists its :class:`Layout` objects as ``layouts``, an attribute of the class or a
property. A layout is a table of names and the few tensors that change shape;
:mod:`gatework.checkpoints` recognises which one a checkpoint is in, and loads it.

Names are written as patterns: ``{i}`` (one letter) is a whole number, ``{rest}`` (a longer word) any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The name of our own layout, that of ``model.state_dict()``, which every model has.
OWN = "gatework"

#: Brings a position table to another shape.
Resize: TypeAlias = Callable[[Tensor, tuple[int, ...]], Tensor]

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Layout:
    """One layout of a model's weights, with what is needed to bring it to ours.

    The conversion leaves out what is ignored, renames, and calls ``convert`` on all tensors at once. It only
    moves numbers (renames, transposes, splits, joins), so that gradients go through it as weights do.

    Attributes:
        name: What ``layout=`` calls it, unique within a model.
        marks: Names that are in every checkpoint of this layout; ``"a|b"`` if either is. By these it is
            recognised. A layout without marks is taken for whatever fits no other.
        without: Names that are in no checkpoint of this layout.
        renames: Our names by theirs. An exact name goes before a pattern, an earlier pattern before a later
            one; names that are not in the table stay. Where several become one, as copies of a shared
            parameter do, they must be equal.
        convert: Takes all tensors, renamed, and returns them in our shapes. It has to cope with the absence
            of any: gradients are few. See :func:`change`, :func:`join` and :func:`split`.
        ignore: Their names that have no counterpart here: index tables, counters, constants.
        keep: Our names that no checkpoint of this layout holds; the model's own values stay.
        positions: How the position tables, by our names, come to another size.
        head: Our names of what depends on the number of classes.

    Raises:
        ValueError: If a new name has a placeholder that the old one has not.
        TypeError: If names are a text instead of a sequence of texts.
    """

    name: str
    marks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None
    ignore: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    positions: Mapping[str, Resize] = field(default_factory=dict)
    head: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what in ("marks", "without", "ignore", "keep", "head"):
            if isinstance(names := getattr(self, what), str):
                raise TypeError(f"layout {self.name!r}: {what} must be a tuple of names, got {names!r}")
        for theirs, ours in self.renames.items():
            if unknown := set(_PLACEHOLDER.findall(ours)) - set(_PLACEHOLDER.findall(theirs)):
                raise ValueError(f"layout {self.name!r}: {ours!r} has {sorted(unknown)}, {theirs!r} has not")

    @classmethod
    def of_names(cls, renames: Mapping[str, str], *, name: str = "official") -> Layout:
        """Make a layout of a table alone, ours by theirs: any name in it that is only theirs marks it."""
        ours = set(renames.values())
        theirs = [pattern for pattern in renames if pattern not in ours]
        return cls(name, marks=("|".join(theirs),) if theirs else (), renames=renames)

    def missing(self, names: Collection[str]) -> list[str]:
        """Return what keeps ``names`` from being of this layout; nothing if they are."""
        absent = [mark for mark in self.marks if not _has(names, mark)]
        return absent + [f"no {mark}" for mark in self.without if _has(names, mark)]

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring weights, or gradients, of this layout to ours; some may be absent.

        Raises:
            ValueError: If tensors that become one differ, or ``convert`` refuses them.
        """
        renamed: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        for name, tensor in weights.items():
            if matches(self.ignore, name):
                continue
            ours = self.rename(name)
            if ours in renamed and not _equal(renamed[ours], tensor):
                raise ValueError(f"{name} differs from {origin[ours]}, and both are {ours} here")
            renamed[ours] = tensor
            origin[ours] = name
        return renamed if self.convert is None else dict(self.convert(renamed))

    def rename(self, name: str) -> str:
        """Return our name for theirs, as the table has it."""
        if name in self.renames:
            return self.renames[name]
        for theirs, ours in self.renames.items():
            if "{" in theirs and (found := _match(theirs, name)):
                return _filled(ours, found)
        return name

    def origins(
        self, shapes: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, Tensor], tuple[tuple[str, ...], ...]]:
        """Say where every number of our tensors comes from.

        Because a conversion only moves numbers, labels put through it show where each has gone.

        Args:
            shapes: The tensors of a checkpoint.

        Returns:
            Our tensors, filled with indices into the second: their names, copies of one tensor together.

        Raises:
            ValueError: If the conversion refuses labels, as one that looks at values may.
        """
        firsts: dict[str, list[str]] = {}
        for name in shapes:
            if not matches(self.ignore, name):
                firsts.setdefault(self.rename(name), []).append(name)
        labels = {
            theirs[0]: torch.tensor(index, dtype=torch.int32).expand(tuple(shapes[theirs[0]]))
            for index, theirs in enumerate(firsts.values())
        }
        return self.to_ours(labels), tuple(tuple(theirs) for theirs in firsts.values())

    def sources(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, ...]]:
        """Return which of their tensors each of ours is made of, for the shapes of a checkpoint.

        Where that cannot be followed, only what renaming tells.
        """
        try:
            labels, origins = self.origins(shapes)
        except Exception:  # a `convert` that looks at values may fail on labels in any way
            return {self.rename(name): (name,) for name in shapes if not matches(self.ignore, name)}
        return {
            name: tuple(theirs for label in tensor.unique().tolist() for theirs in origins[label])
            for name, tensor in labels.items()
        }


def layouts_of(module: nn.Module) -> tuple[Layout, ...]:
    """Return all layouts that a model or a mixer knows, ours first.

    A class that has no ``layouts``, or that overrides ``convert_official`` below the class that has them,
    has one called ``"official"``, made of that method. What foreign layouts say of position tables and of the
    head holds for our own too, unless the model lists one called ``"gatework"``.

    Raises:
        ValueError: If two have the same name.
    """
    listed = _foreign_layouts(module)
    names = [layout.name for layout in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{type(module).__name__} has two layouts called {', '.join(map(repr, twice))}")
    own = [layout for layout in listed if layout.name == OWN]
    if not own:
        positions = {name: resize for layout in reversed(listed) for name, resize in layout.positions.items()}
        head = dict.fromkeys(name for layout in listed for name in layout.head)
        own = [Layout(OWN, positions=positions, head=tuple(head))]
    return (*own, *(layout for layout in listed if layout.name != OWN))


def _foreign_layouts(module: nn.Module) -> tuple[Layout, ...]:
    for cls in type(module).__mro__:
        if "layouts" in vars(cls):
            layouts: Iterable[Layout] = getattr(module, "layouts")  # noqa: B009 (not every module has it)
            return tuple(layouts)
        if "convert_official" in vars(cls):
            convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = getattr(module, "convert_official")  # noqa: B009
            return (Layout("official", convert=convert),)
    return ()


def to_ours(layouts: Iterable[Layout], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights that are in one of some foreign layouts to ours; those of none of them stay as they are.

    Raises:
        ValueError: If two layouts fit, or tensors cannot be converted.
    """
    foreign = [layout for layout in layouts if layout.name != OWN and not layout.missing(weights)]
    fitting = [layout for layout in foreign if layout.marks] or foreign
    if len(fitting) > 1:
        raise ValueError(f"they fit more than one layout: {', '.join(layout.name for layout in fitting)}")
    return fitting[0].to_ours(weights) if fitting else dict(weights)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Return whether a name is one of the patterns."""
    return any(_match(pattern, name) for pattern in patterns)


def change(
    weights: Mapping[str, Tensor], pattern: str, function: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Apply a function to the tensors that a pattern names: a transposition, a reshape."""
    return {
        name: function(tensor) if matches([pattern], name) else tensor for name, tensor in weights.items()
    }


def join(weights: Mapping[str, Tensor], parts: Sequence[str], whole: str, dim: int = 0) -> dict[str, Tensor]:
    """Concatenate tensors, for each number or text that the placeholders of their names stand for.

    Args:
        weights: All tensors.
        parts: Patterns of those to join, in order, with the same placeholders.
        whole: What the result is called.
        dim: Axis along which they are joined.

    Raises:
        ValueError: If some parts are there and others not.
    """
    found: dict[str, dict[str, str]] = {}
    for name in weights:
        for part in parts:
            if place := _match(part, name):
                found.setdefault(_filled(whole, place), {})[part] = name
                break
    joined = {name: weights[name] for name in weights}
    for name, group in found.items():
        if absent := [part for part in parts if part not in group]:
            raise ValueError(f"{name} is made of {len(parts)} tensors, and {', '.join(absent)} is missing")
        joined[name] = torch.cat([joined.pop(group[part]) for part in parts], dim)
    return joined


def split(
    weights: Mapping[str, Tensor],
    whole: str,
    parts: Sequence[str],
    sizes: Sequence[int] | None = None,
    dim: int = 0,
) -> dict[str, Tensor]:
    """Cut tensors into parts, for each number or text that the placeholders of their names stand for.

    Args:
        weights: All tensors.
        whole: Pattern of those to cut.
        parts: What the parts are called, in order.
        sizes: How long each part is, all the same by default.
        dim: Axis that is cut.

    Raises:
        ValueError: If the parts do not add up to the whole.
    """
    cut: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        place = _match(whole, name)
        if place is None:
            cut[name] = tensor
            continue
        length = tensor.shape[dim]
        lengths = [length // len(parts)] * len(parts) if sizes is None else list(sizes)
        if sum(lengths) != length or len(lengths) != len(parts):
            wanted = len(parts) if sizes is None else list(sizes)
            raise ValueError(f"{name} has length {length}, and cannot be cut into {wanted}")
        pieces = torch.split_with_sizes(tensor, lengths, dim)
        cut |= {_filled(part, place): piece for part, piece in zip(parts, pieces, strict=True)}
    return cut


def resize_bilinear(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resize the last two axes, as of ``(heads, 2 height - 1, 2 width - 1)``, between the centres of cells.

    Raises:
        ValueError: If the other axes differ, too.
    """
    if table.ndim < 2 or tuple(table.shape[:-2]) != shape[:-2]:
        raise ValueError(f"a table of shape {tuple(table.shape)} cannot become {shape}")
    maps = table.reshape(1, -1, *table.shape[-2:])
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    resized = F.interpolate(wide, shape[-2:], mode="bilinear", align_corners=False)
    return resized.reshape(shape).to(table.dtype)


def resize_square_tokens(table: Tensor, shape: tuple[int, ...], *, prefix_tokens: int = 0) -> Tensor:
    """Resize learned positions of the tokens of a square map, ``(1, tokens, channels)``, bicubically.

    Args:
        table: Stored.
        shape: Wanted.
        prefix_tokens: How many first tokens, such as that of the class, are no pixels and stay.

    Raises:
        ValueError: If either map is not square, or the channels differ.
    """
    sides = [
        round((size[1] - prefix_tokens) ** 0.5) if len(size) == 3 else 0 for size in (table.shape, shape)
    ]
    for side, size in zip(sides, (tuple(table.shape), shape), strict=True):
        if side == 0 or side**2 + prefix_tokens != size[1] or (size[0], size[2]) != (shape[0], shape[2]):
            raise ValueError(f"positions of shape {tuple(table.shape)} cannot become {shape}: no square maps")
    first, pixels = table[:, :prefix_tokens], table[:, prefix_tokens:]
    wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32)).unflatten(1, (sides[0], sides[0]))
    resized = F.interpolate(wide.movedim(-1, 1), (sides[1], sides[1]), mode="bicubic", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(table.dtype)], 1)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], ...]:
    """A pattern as regular expressions: ``|`` separates alternatives."""
    return tuple(re.compile(_expression(alternative)) for alternative in pattern.split("|"))


def _match(pattern: str, name: str) -> re.Match[str] | None:
    for expression in _compiled(pattern):
        if found := expression.fullmatch(name):
            return found
    return None


def _expression(pattern: str) -> str:
    parts, seen = [], set()
    for index, part in enumerate(_PLACEHOLDER.split(pattern)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>{'[0-9]+' if len(part) == 1 else '.+'})")
    return "".join(parts)


def _has(names: Collection[str], mark: str) -> bool:
    if "{" not in mark:
        return any(name in names for name in mark.split("|"))
    return any(_match(mark, name) for name in names)


def _filled(pattern: str, found: re.Match[str]) -> str:
    return _PLACEHOLDER.sub(lambda place: _written(place[1], found), pattern)


def _written(name: str, found: re.Match[str]) -> str:
    """What a placeholder stands for; numbers lose the zeros that others write before them."""
    return str(int(found[name])) if len(name) == 1 else found[name]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
