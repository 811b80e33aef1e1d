"""The pairs of tiles that kernels offer, by kernel and number of axes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TilePair:
    """Tiles that a kernel computes with.

    Attributes:
        kernel: Its name; empty for tiles of one's own.
        q_tile: Queries of a tile along each axis.
        kv_tile: Keys of a tile.
    """

    kernel: str
    q_tile: tuple[int, ...]
    kv_tile: tuple[int, ...]

    def __str__(self) -> str:
        return f"{shape_text(self.q_tile)} / {shape_text(self.kv_tile)}"


def shape_text(sizes: tuple[int, ...]) -> str:
    """Write sizes of axes: ``30x48x80``."""
    return "x".join(map(str, sizes))


#: Pairs that NATTEN 0.21 offers in forward passes: those of its kernels for Blackwell GPUs (256 queries and
#: 128 keys), some of those for Hopper (128 and 128), and those for FlexAttention (64 and 64).
TILE_PAIRS = (
    TilePair("blackwell", (16, 16), (16, 8)),
    TilePair("blackwell", (16, 16), (8, 16)),
    TilePair("blackwell", (8, 32), (8, 16)),
    TilePair("blackwell", (8, 32), (4, 32)),
    TilePair("blackwell", (8, 4, 8), (4, 4, 8)),
    TilePair("blackwell", (8, 4, 8), (2, 8, 8)),
    TilePair("blackwell", (2, 8, 16), (4, 4, 8)),
    TilePair("blackwell", (2, 8, 16), (2, 8, 8)),
    TilePair("blackwell", (4, 4, 16), (2, 4, 16)),
    TilePair("blackwell", (2, 16, 8), (2, 8, 8)),
    TilePair("blackwell", (4, 8, 8), (2, 8, 8)),
    TilePair("hopper", (16, 8), (16, 8)),
    TilePair("hopper", (4, 4, 8), (4, 4, 8)),
    TilePair("hopper", (2, 8, 8), (2, 8, 8)),
    TilePair("flex", (64,), (64,)),
    TilePair("flex", (8, 8), (8, 8)),
    TilePair("flex", (4, 16), (4, 16)),
    TilePair("flex", (4, 16), (8, 8)),
    TilePair("flex", (4, 4, 4), (4, 4, 4)),
    TilePair("flex", (2, 4, 8), (2, 4, 8)),
    TilePair("flex", (2, 4, 8), (4, 4, 4)),
)
KERNELS = tuple(dict.fromkeys(pair.kernel for pair in TILE_PAIRS))


def offered(axes: int, kernel: str | None = None) -> tuple[TilePair, ...]:
    """Return the pairs for grids of so many axes.

    Args:
        axes: One to three.
        kernel: Only those of this kernel.

    Raises:
        ValueError: If no kernel has that name, or it offers none.
    """
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    found = tuple(pair for pair in TILE_PAIRS if len(pair.q_tile) == axes and kernel in (None, pair.kernel))
    if not found:
        kernels = dict.fromkeys(pair.kernel for pair in TILE_PAIRS if len(pair.q_tile) == axes)
        listed = f" (of {', '.join(kernels)} there are)" if kernels else ""
        raise ValueError(f"no tiles of kernel {kernel!r} are known for {axes}-D grids{listed}; give your own")
    return found
