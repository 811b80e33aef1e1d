"""What is to be measured: the checked options of one benchmark, and its cells."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gatework.bench.attention.expressions import parse_mask
from gatework.bench.attention.families import FAMILIES, PRESETS
from gatework.bench.environment import total_memory
from gatework.bench.store import slug
from gatework.checks import (
    check_bool,
    check_choice,
    check_divides,
    check_int,
    check_names,
    check_number,
    suggestion,
)
from gatework.masks import Mask
from gatework.ops.attention import ENGINES

#: How much arithmetic a pass does, in multiples of a forward pass (arXiv:2510.17896, section 4).
PASSES: Mapping[str, float] = {"forward": 1.0, "backward": 2.5, "both": 3.5}
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
#: What stands where neither the call nor its preset says anything.
DEFAULTS: Mapping[str, Any] = {
    "head_dims": (64,),
    "dtypes": ("float32",),
    "num_heads": 4,
    "num_kv_heads": None,
    "batch_size": 1,
    "passes": ("forward",),
    "repeats": 5,
    "min_time": 0.1,
    "memory": True,
}
_LONGEST = 2**24


class Problem(NamedTuple):
    """One attention problem: what all engines compute, and take turns at.

    Attributes:
        mask: Name of the mask.
        expression: The mask as text.
        length: Number of queries, and of keys.
        head_dim: Size of a head.
        dtype: Name of the dtype.
    """

    mask: str
    expression: str
    length: int
    head_dim: int
    dtype: str


class Cell(NamedTuple):
    """One measurement: a problem, the pass, and the engine that does it."""

    problem: Problem
    kind: str
    engine: str

    @property
    def label(self) -> str:
        """The cell in words."""
        mask, _, length, head_dim, dtype = self.problem
        return f"{mask}, {length} tokens, {head_dim} channels, {dtype}, {self.kind}, {self.engine}"

    @property
    def cell_id(self) -> str:
        """A name for files: readable, with a hash of everything that makes the cell."""
        values = json.dumps([*self.problem, self.kind, self.engine])
        mask, _, length, head_dim, dtype = self.problem
        words = (slug(mask, 40), f"n{length}", f"d{head_dim}", dtype, self.kind, slug(self.engine))
        return "_".join((*words, hashlib.sha256(values.encode()).hexdigest()[:8]))

    def to_json(self) -> dict[str, Any]:
        """Everything that makes the cell."""
        return {**self.problem._asdict(), "pass": self.kind, "engine": self.engine}


@dataclass(frozen=True)
class BenchPlan:
    """The options of one benchmark, all of them stated; results depend on nothing else but the machine.

    Attributes:
        masks: Masks as text, by name.
        lengths: Numbers of tokens.
        head_dims: Sizes of a head.
        dtypes: Names of dtypes.
        engines: Names of engines.
        passes: ``"forward"`` (without gradients), ``"backward"`` (alone), ``"both"`` (one after the other).
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        batch_size: Sequences.
        threads: Threads of PyTorch.
        repeats: Turns of each side, at least.
        min_time: Seconds of each side, at least.
        max_memory: An engine that would need more bytes than this for all pairs is skipped.
        memory: Whether peak memory is measured.
    """

    masks: dict[str, str]
    lengths: list[int]
    head_dims: list[int]
    dtypes: list[str]
    engines: list[str]
    passes: list[str]
    num_heads: int
    num_kv_heads: int
    batch_size: int
    threads: int
    repeats: int
    min_time: float
    max_memory: int
    memory: bool

    def cells(self) -> list[Cell]:
        """Every measurement, those of one problem and pass after each other."""
        axes = product(self.masks.items(), self.lengths, self.head_dims, self.dtypes, self.passes)
        return [
            Cell(Problem(mask, text, length, head_dim, dtype), kind, engine)
            for (mask, text), length, head_dim, dtype, kind in axes
            for engine in self.engines
        ]

    def to_json(self) -> dict[str, Any]:
        """The options as plain values."""
        return asdict(self)


def make_plan(
    *,
    preset: str,
    masks: Sequence[str | Mask] | Mapping[str, str | Mask] | None,
    threads: int | None,
    engines: Sequence[str] | None,
    max_memory: int | None,
    **options: Any,
) -> BenchPlan:
    """Check the options of :func:`gatework.bench.attention`, and fill in what they leave open.

    Raises:
        TypeError: If an option has another type.
        ValueError: If a value is impossible, naming it and what is allowed.
    """
    check_choice("preset", preset, PRESETS)
    check_names("a benchmark of attention has no option", options, {**DEFAULTS, **PRESETS[preset]})
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {**DEFAULTS, **PRESETS[preset], **given}
    num_heads = _count("num_heads", chosen["num_heads"])
    num_kv_heads = num_heads if chosen["num_kv_heads"] is None else chosen["num_kv_heads"]
    check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)
    check_bool("memory", chosen["memory"])
    texts = _mask_texts(chosen["masks"] if masks is None else masks)
    plan = BenchPlan(
        masks=texts,
        lengths=_counts("lengths", chosen["lengths"], most=_LONGEST),
        head_dims=_counts("head_dims", chosen["head_dims"]),
        dtypes=_names("dtypes", chosen["dtypes"], DTYPES),
        engines=_names("engines", default_engines() if engines is None else engines, ENGINES),
        passes=_names("passes", chosen["passes"], PASSES),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        batch_size=_count("batch_size", chosen["batch_size"]),
        threads=_count("threads", torch.get_num_threads() if threads is None else threads),
        repeats=_count("repeats", chosen["repeats"]),
        min_time=float(check_number("min_time", chosen["min_time"], at_least=0, at_most=3600)),
        max_memory=_count("max_memory", total_memory() // 2 if max_memory is None else max_memory, 2**60),
        memory=chosen["memory"],
    )
    for text in texts.values():
        _check_readable(text, plan.lengths)
    return plan


def equivalent_command(plan: BenchPlan, output: str | Path | None = None) -> str:
    """Return the command line that measures a plan."""
    words = ["gatework", "bench", "attention"]
    for name, value in plan.to_json().items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join([*words, *(["--output", str(output)] if output is not None else [])])


def default_engines() -> list[str]:
    """Return every engine but the definition, which is for checking."""
    return [name for name in ENGINES if name != "reference"]


def _mask_texts(masks: Sequence[str | Mask] | Mapping[str, str | Mask]) -> dict[str, str]:
    """Masks by name: families by theirs, others by the name given or by their text."""
    if isinstance(masks, str | Mask) or not isinstance(masks, Sequence | Mapping):
        raise TypeError(f"masks must be a list or a mapping, got {masks!r}")
    entries = masks.items() if isinstance(masks, Mapping) else [(None, mask) for mask in masks]
    texts: dict[str, str] = {}
    for name, mask in entries:
        own_name, text = _mask_text(mask)
        texts[name or own_name] = text
    if not texts:
        raise ValueError("masks must name at least one mask")
    return texts


def _mask_text(mask: Any) -> tuple[str, str]:
    """Name and text of one mask."""
    if isinstance(mask, Mask):
        return repr(mask), repr(mask)
    if not isinstance(mask, str):
        raise TypeError(f"masks must be names, expressions or Masks, got {mask!r}")
    text = mask.strip()
    if text in FAMILIES:
        return text, FAMILIES[text]
    if re.fullmatch(r"[\w-]+", text):
        raise ValueError(f"mask {text!r} is not known{suggestion(text, list(FAMILIES))}")
    return text, text


def _check_readable(text: str, lengths: Sequence[int]) -> None:
    """Refuse a text that describes a mask for no length; for some lengths a mask may be impossible."""
    errors = []
    for length in lengths:
        try:
            parse_mask(text, length)
        except (TypeError, ValueError) as error:
            errors.append(error)
    if len(errors) == len(lengths):
        raise errors[0]


def _list(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list, got {values!r}")
    if not values:
        raise ValueError(f"{name} must name at least one value")
    return [*dict.fromkeys(values)]


def _names(name: str, values: Any, known: Mapping[str, Any]) -> list[str]:
    for value in _list(name, values):
        check_choice(name, value, known)
    return _list(name, values)


def _counts(name: str, values: Any, most: int = 2**20) -> list[int]:
    return [_count(name, value, most) for value in _list(name, values)]


def _count(name: str, value: Any, most: int = 2**20) -> int:
    return check_int(name, value, at_least=1, at_most=most)
