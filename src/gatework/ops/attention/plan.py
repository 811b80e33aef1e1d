"""What the blocked engine computes: tiles of queries, the keys they need, and masks for pairs in doubt."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Bytes that every part of a packed plan is aligned to.
_ALIGNMENT = 8


class Plan(NamedTuple):
    """Tiles of queries with the keys that they need, for every pattern of a mask.

    Attributes:
        pattern_of: ``(batch or 1, heads or 1)``: the pattern of each sequence and query head.
        pattern_tile: Pattern ``p`` has the tiles ``pattern_tile[p] ... pattern_tile[p + 1] - 1``.
        tile_query: Tile ``t`` serves the queries ``query[tile_query[t] : tile_query[t + 1]]``.
        query: Positions of queries; every position is in exactly one tile of each pattern.
        tile_run: Tile ``t`` has the runs ``tile_run[t] ... tile_run[t + 1] - 1``; its keys are those of its
            runs, one run after the other.
        run_start: Position of the first key of a run.
        run_length: Number of keys of a run, at least 1.
        tile_piece: Tile ``t`` has the pieces ``tile_piece[t] ... tile_piece[t + 1] - 1``.
        piece_column: First of the tile's keys, counted through its runs, that a piece masks; pieces of a
            tile are increasing and disjoint, and where there is none every query attends to the key.
        piece_width: Number of keys that a piece masks.
        piece_mask: Where in ``pool`` the piece's mask begins, of shape ``(queries of the tile, width)``.
        pool: The masks, 1 where a query may attend to a key; pieces share them.
    """

    pattern_of: Tensor
    pattern_tile: Tensor
    tile_query: Tensor
    query: Tensor
    tile_run: Tensor
    run_start: Tensor
    run_length: Tensor
    tile_piece: Tensor
    piece_column: Tensor
    piece_width: Tensor
    piece_mask: Tensor
    pool: Tensor


def pack(plan: Plan) -> Tensor:
    """Put a plan into one tensor of bytes: digest, sizes, and one part after the other.

    Operators of PyTorch take tensors, not values of Python: in this form a plan reaches them, also from a
    compiled graph.
    """
    rows, columns = plan.pattern_of.shape
    parts = [_bytes(part) for part in plan]
    sizes = np.array([rows, columns, *(len(part) for part in parts)], dtype=np.int64).view(np.uint8)
    padded = [sizes, *(np.pad(part, (0, -len(part) % _ALIGNMENT)) for part in parts)]
    body = np.concatenate(padded)
    digest = np.frombuffer(hashlib.blake2b(body.tobytes(), digest_size=16).digest(), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([digest, body]))


def digest(packed: Tensor) -> bytes:
    """Return what tells a packed plan from every other one."""
    return packed[:16].numpy().tobytes()


def unpack(packed: Tensor) -> Plan:
    """Return the plan that :func:`pack` packed, as views of the one tensor."""
    start = 16 + (2 + len(Plan._fields)) * 8
    rows, columns, *lengths = packed[16:start].view(torch.int64).tolist()
    parts = {}
    for name, length in zip(Plan._fields, lengths, strict=True):
        parts[name] = packed[start : start + length].view(_dtype(name))
        start += length + -length % _ALIGNMENT
    parts["pattern_of"] = parts["pattern_of"].view(rows, columns)
    return Plan(**parts)


def _dtype(name: str) -> torch.dtype:
    """The dtype of one field of a plan."""
    return {"pool": torch.uint8, "piece_mask": torch.int64}.get(name, torch.int32)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    return flat


class TileList:
    """A plan in the making: tiles are added one by one, and equal masks are stored once."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[np.int64]]] = {
            name: [] for name in ("query", "run_start", "run_length", "column", "width", "mask")
        }
        self._counts: dict[str, list[int]] = {"query": [0], "run": [0], "piece": [0]}
        self._pool: list[NDArray[np.uint8]] = []
        self._pool_size = 0
        self._offsets: dict[tuple[tuple[int, ...], bytes], int] = {}
        self.pattern_tile = [0]

    def mask(self, allowed: NDArray[np.bool_]) -> int:
        """Store a mask of shape (queries, keys), and return where it begins."""
        key = (allowed.shape, np.packbits(allowed).tobytes())
        if key not in self._offsets:
            self._offsets[key] = self._pool_size
            self._pool.append(allowed.astype(np.uint8).reshape(-1))
            self._pool_size += allowed.size
        return self._offsets[key]

    def add(
        self,
        query: NDArray[np.int64],
        runs: tuple[NDArray[np.int64], NDArray[np.int64]],
        pieces: list[tuple[int, int, int]],
    ) -> None:
        """Add a tile: its queries, starts and lengths of its runs, (column, width, mask) of its pieces."""
        self._extend("query", query, "query")
        self._extend("run_start", runs[0], "run")
        self._parts["run_length"].append(runs[1])
        columns = np.array(pieces, dtype=np.int64).reshape(-1, 3)
        self._extend("column", columns[:, 0], "piece")
        self._parts["width"].append(columns[:, 1])
        self._parts["mask"].append(columns[:, 2])

    def end_pattern(self) -> None:
        """Say that the tiles added since the last call are one pattern."""
        self.pattern_tile.append(len(self._counts["query"]) - 1)

    def plan(self, pattern_of: NDArray[np.int64]) -> Plan:
        """Return the plan; ``pattern_of`` says which pattern each sequence and head has."""
        joined = {name: np.concatenate([np.empty(0, np.int64), *p]) for name, p in self._parts.items()}
        pool = np.concatenate([np.empty(0, np.uint8), *self._pool])
        return Plan(
            pattern_of=_ints(pattern_of),
            pattern_tile=_ints(self.pattern_tile),
            tile_query=_ints(self._counts["query"]),
            query=_ints(joined["query"]),
            tile_run=_ints(self._counts["run"]),
            run_start=_ints(joined["run_start"]),
            run_length=_ints(joined["run_length"]),
            tile_piece=_ints(self._counts["piece"]),
            piece_column=_ints(joined["column"]),
            piece_width=_ints(joined["width"]),
            piece_mask=torch.from_numpy(joined["mask"]),
            pool=torch.from_numpy(pool),
        )

    def _extend(self, name: str, values: NDArray[np.int64], count: str) -> None:
        self._parts[name].append(values)
        self._counts[count].append(self._counts[count][-1] + len(values))


def _ints(values: NDArray[np.int64] | list[int]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
