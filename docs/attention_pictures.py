"""Draw the pictures of ``docs/attention.md`` from the masks themselves, and write its gallery.

Run it after a mask, or what is listed here, has changed: ``python docs/attention_pictures.py``. The tests
compare its files with those that are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gatework import masks
from gatework.masks import GridMask, Mask

DOCS = Path(__file__).parent
PAGE = DOCS / "attention.md"

#: Pixels along a side, at most.
SIDE = 144
#: Pixels between two panels.
GAP = 12
#: Colours that are legible on white and on black: allowed pairs, the others, the query that is looked at.
ALLOWED, FORBIDDEN, QUERY = "#4a90d9", 'fill="#888" fill-opacity=".2"', "#f08c00"


class Picture(NamedTuple):
    """One mask of the gallery.

    Attributes:
        name: Of its file.
        expression: Makes the mask from the names in ``gatework.masks``, ``lengths`` and ``indices``.
        text: Who may attend to whom.
        q_length: Number of queries, where it is not ``kv_length``.
        kv_length: Number of keys, where the mask goes with any.
    """

    name: str
    expression: str
    text: str
    q_length: int | None = None
    kv_length: int = 48

    def mask(self) -> Mask:
        """The value of the expression."""
        names = {name: getattr(masks, name) for name in masks.__all__}
        made = eval(self.expression, names | {"lengths": LENGTHS, "indices": INDICES, "torch": torch})
        assert isinstance(made, Mask)
        return made


#: Documents of the pictures.
LENGTHS = [10, 18, 6, 14]
#: Blocks of keys that each of four blocks of queries sees; -1 is none.
INDICES = torch.tensor([[0, -1], [0, 1], [1, 2], [0, 3]])

SEQUENCES = (
    Picture("full", "Full()", "everything"),
    Picture("causal", "Causal()", "itself and the past"),
    Picture("window", "SlidingWindow(6, 6)", "six tokens on either side, and itself"),
    Picture("causal-window", "SlidingWindow(8, 0)", "the last eight tokens, and itself"),
    Picture(
        "global-window", "GlobalWindow(5, num_global=3)", "a window; the first three see all, all see them"
    ),
    Picture("prefix", "PrefixLM(12)", "the past, and a prefix that all see"),
    Picture("block-causal", "BlockCausal(8)", "its own block and the earlier ones"),
    Picture("documents", "Document(lengths)", "its own document"),
    Picture("causal-documents", "CausalDocument(lengths)", "the past of its document"),
    Picture("prefix-documents", "PrefixLMDocument(lengths, 4)", "the past of its document, and its start"),
    Picture(
        "block-documents", "BlockCausalDocument(lengths, 4)", "its block and the earlier ones of its document"
    ),
    Picture(
        "shared-question", "SharedQuestion(lengths)", "the past of its document; answers see the question"
    ),
    Picture(
        "causal-blockwise", "CausalBlockwise(lengths)", "the past of its document; the last sees all others"
    ),
)

BLOCKS = (
    Picture(
        "random-blocks", "BlockSparse.random(48, 48, 6, ratio=0.25)", "as many random blocks in each row"
    ),
    Picture(
        "listed-blocks",
        "BlockSparse.from_indices(indices, 12, q_length=48, kv_length=48)",
        "the blocks that each row lists",
    ),
    Picture(
        "sized-blocks",
        "BlockSparse(torch.eye(3).bool(), torch.tensor([6, 30, 12]), torch.tensor([20, 8, 20]))",
        "blocks of any sizes",
    ),
    Picture("earlier-blocks", "RandomBlocks(6, num_random=2)", "two random blocks before its own"),
    Picture(
        "compressed-blocks", "CompressedBlocks(4, num_first=2)", "keys that stand for the blocks before it"
    ),
    Picture(
        "slices",
        'Slices([(0, 20, 0, 20, "causal"), (20, 48, 0, 8), (20, 48, 12, 48, "bicausal")])',
        "rectangles, whole or cut along a diagonal",
    ),
)

COMBINATIONS = (
    Picture("and", "SlidingWindow(9, 0) & Document(lengths)", "a causal window within documents"),
    Picture("sink", "Causal() & GlobalWindow(8, num_global=4)", "a causal window, and the first four tokens"),
    Picture(
        "or", "SlidingWindow(3, 3) | BlockSparse.random(48, 48, 6, ratio=0.15)", "a window and random blocks"
    ),
    Picture("not", "Causal() & ~SlidingWindow(12, 0)", "the distant past alone"),
    Picture(
        "offset",
        "Causal().with_query_offset(32)",
        "16 queries that stand behind the first 32 of 48 keys",
        q_length=16,
    ),
)

GRIDS = (
    Picture("neighborhood-1d", "Neighborhood(48, 9)", "nine tokens, also at the border"),
    Picture("neighborhood-1d-dilated", "Neighborhood(48, 5, dilation=4)", "every fourth token"),
    Picture("neighborhood-2d", "Neighborhood((8, 9), 5)", "5 × 5 tokens around it"),
    Picture("neighborhood-2d-stride", "Neighborhood((8, 9), 4, stride=2)", "groups of 2 × 2 share a window"),
    Picture("neighborhood-2d-dilated", "Neighborhood((8, 9), 3, dilation=2)", "every second row and column"),
    Picture(
        "neighborhood-2d-causal",
        "Neighborhood((8, 9), 5, is_causal=(True, False))",
        "no row below its own",
    ),
    Picture("neighborhood-3d", "Neighborhood((4, 3, 6), 3)", "3 × 3 × 3 tokens; four planes"),
    Picture("halo", "Halo((8, 9), block=(4, 3), halo=1)", "its block of 4 × 3, and one more on each side"),
    Picture("windows", "Windows((8, 9), (4, 3))", "its window of 4 × 3"),
    Picture("windows-shifted", "Windows((8, 9), (4, 3), shift=(2, 1))", "the same, shifted"),
    Picture("grid", "Grid((8, 9), (4, 3))", "4 × 3 tokens, spread over the plane"),
)

PICTURES = (*SEQUENCES, *BLOCKS, *GRIDS, *COMBINATIONS)


def files() -> dict[Path, str]:
    """Every file that belongs to the gallery, the page included, and what it holds."""
    drawn = {DOCS / "attention" / f"{picture.name}.svg": svg(picture) for picture in PICTURES}
    page = PAGE.read_text(encoding="utf-8")
    for name, columns, pictures in (
        ("sequences", 3, SEQUENCES),
        ("blocks", 2, BLOCKS),
        ("grids", 2, GRIDS),
        ("combinations", 2, COMBINATIONS),
    ):
        start, end = f"<!-- gallery of {name}: made by attention_pictures.py -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(start)
        page = before + start + "\n" + gallery(pictures, columns) + "\n" + end + rest.split(end)[1]
    return drawn | {PAGE: page}


def gallery(pictures: tuple[Picture, ...], columns: int) -> str:
    """A table of pictures, each with the expression that makes it."""
    cells = [
        f"![{picture.text}](attention/{picture.name}.svg)<br>`{picture.expression}`<br>{picture.text}"
        for picture in pictures
    ]
    cells += [""] * (-len(cells) % columns)
    lines = [("  - " if place % columns else "* - ") + cell for place, cell in enumerate(cells)]
    table = "\n".join(line.rstrip() for line in lines)
    return f":::{{list-table}}\n:header-rows: 0\n:widths: {' '.join(['1'] * columns)}\n\n{table}\n:::\n"


def svg(picture: Picture) -> str:
    """Draw all pairs, queries downward and keys to the right; of a grid also the keys of one query."""
    mask = picture.mask()
    kv_length = mask.kv_size or picture.kv_length
    allowed = mask.to_dense(picture.q_length or mask.q_size or kv_length, kv_length)
    cell = SIDE // max(allowed.shape)
    width, height = allowed.shape[1] * cell, allowed.shape[0] * cell
    drawing = panel(allowed, 0, 0, cell)
    if isinstance(mask, GridMask) and len(mask.q_shape) > 1:
        left = width + GAP
        planes, query = keys_of_one(allowed, mask.q_shape)
        count, rows, columns = planes.shape
        cell = min(SIDE // columns, (SIDE - (count - 1) * GAP) // (count * rows))
        for place, plane in enumerate(planes):
            drawing += panel(plane, left, place * (rows * cell + GAP), cell)
        x, y = left + query[2] * cell, query[0] * (rows * cell + GAP) + query[1] * cell
        drawing += f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{QUERY}"/>\n'
        width, height = left + columns * cell, max(height, count * (rows * cell + GAP) - GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" shape-rendering="crispEdges">\n{drawing}</svg>\n'
    )


def keys_of_one(allowed: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int, int]]:
    """The keys of a query in the middle, ``(planes, rows, columns)``, and where it stands."""
    volume = (*(1,) * (3 - len(shape)), *shape)
    query = [(size - 1) // 2 for size in volume]
    number = (query[0] * volume[1] + query[1]) * volume[2] + query[2]
    return allowed[number].view(volume), (query[0], query[1], query[2])


def panel(allowed: Tensor, left: int, top: int, cell: int) -> str:
    """Draw booleans as cells."""
    rows, columns = allowed.shape
    path = "".join(
        f"M{left + x * cell} {top + y * cell}h{w * cell}v{h * cell}h{-w * cell}z"
        for x, y, w, h in rectangles(allowed)
    )
    return (
        f'<rect x="{left}" y="{top}" width="{columns * cell}" height="{rows * cell}" {FORBIDDEN}/>\n'
        f'<path fill="{ALLOWED}" d="{path}"/>\n'
    )


def rectangles(allowed: Tensor) -> list[tuple[int, int, int, int]]:
    """Cover what is true by disjoint rectangles ``(x, y, width, height)``: equal runs of successive rows."""
    found, open_runs = [], {}
    for y, row in enumerate([*allowed.tolist(), []]):
        edges = [x for x, (a, b) in enumerate(zip([False, *row], [*row, False], strict=True)) if a != b]
        runs = set(zip(edges[::2], edges[1::2], strict=True))
        for run in sorted(open_runs.keys() - runs):
            top = open_runs.pop(run)
            found.append((run[0], top, run[1] - run[0], y - top))
        open_runs.update(dict.fromkeys(runs - open_runs.keys(), y))
    return found


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
