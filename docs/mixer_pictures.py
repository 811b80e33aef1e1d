"""Draw the pictures of ``docs/mixers``, what a token reads and how a state changes, and write its tables.

Run it after a mixer's state, its registry entry or something here has changed: ``python
docs/mixer_pictures.py``. The tests compare its files with those that are stored. Masks draw themselves; the
other pictures are sketches, with numbers chosen to be seen. The tables are what the mixers answer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, pi
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gatework
from gatework.masks import Causal, Mask, SlidingWindow
from gatework.registry import mixer_entry

FOLDER = Path(__file__).parent / "mixers"

#: Tokens of a pattern, and pixels of one of its cells; channels of a state, and pixels of theirs.
TOKENS, CELL = 24, 6
CHANNELS, WIDE = 6, 14
#: Pixels between two things, below a row of them, and of a line of text.
GAP, BELOW, LINE = 14, 22, 14
#: Steps of opacity.
STEPS = 8
#: Colours that are legible on white and on black.
STATE, KEY, VALUE, DECAY, TEXT = "#4a90d9", "#f08c00", "#2f9e6e", "#a56de2", "#767676"
EMPTY = 'fill="#888" fill-opacity=".2"'


class Grid(NamedTuple):
    """Cells of one colour, each more or less opaque.

    Attributes:
        text: What stands below, line by line.
        shares: Opacity of every cell from 0 to 1, row by row.
        cell: Pixels of a cell.
        colour: Of all cells.
    """

    text: str
    shares: list[list[float]]
    cell: int = CELL
    colour: str = STATE


class Sign(NamedTuple):
    """What stands between two grids: ``=``, ``+``, ``×``."""

    text: str


Row = list[Grid | Sign]


# --- what a token reads ---


def pattern(text: str, weight: Callable[[int, int], float]) -> Grid:
    """How much the token of each row (downward) reads of the token of each column (to the right)."""
    tokens = range(TOKENS)
    return Grid(text, [[weight(i, j) if j <= i else 0.0 for j in tokens] for i in tokens])


def allowed(text: str, mask: Mask) -> Grid:
    """The same of a mask: all or nothing."""
    return Grid(text, mask.to_dense(TOKENS, TOKENS).float().tolist())


def noise(i: int, j: int) -> float:
    """A number between 0 and 1 that looks random and is the same everywhere."""
    return (i * 7919 + j * 104729 + i * j * 31) % 97 / 97


def scattered(i: int, j: int) -> float:
    """Whether BigBird reads a token: one near by, one of the first, or one of a random block."""
    return float(i - j <= 4 or j < 2 or (i > 6 and noise(i // 4, j // 4) < 0.25))


def chosen(i: int, j: int) -> float:
    """Whether native sparse attention reads a token: its window, its block, or a block that was chosen."""
    block = 4
    own = i // block
    picked = int(noise(own, 2) * own)
    return float(i - j <= 3 or j // block in (own, picked))


#: Tokens that forget nearly all they have read, in the pictures of decays that depend on the input.
FORGETFUL = (9, 17)
#: Key of every token in the picture of the delta rule.
KEYS = [0, 1, 2, 3, 1, 4, 5, 0, 2, 6, 1, 7, 3, 5, 0, 8, 4, 2, 6, 1, 7, 9, 0, 3]


def remembered(i: int, j: int) -> float:
    """What is left of token ``j`` at ``i`` when each token decides how much to keep."""
    left = 1.0
    for t in range(j + 1, i + 1):
        left *= 0.1 if t in FORGETFUL else 0.93 + 0.06 * noise(t, 0)
    return left


def replaced(i: int, j: int) -> float:
    """Whether what token ``j`` wrote is still there at ``i``: until its key is written again."""
    return float(KEYS[j] not in KEYS[j + 1 : i + 1])


def trained(i: int, j: int) -> float:
    """Weight of token ``j`` in the model that answers ``i``: mini-batches of 6 start from one model."""
    return 1.0 if i // 6 == j // 6 else 0.75 * 0.8 ** (i // 6 - j // 6)


# --- how a state changes ---


def column(text: str, colour: str, shares: list[float] | None = None) -> Grid:
    """A vector, standing."""
    shares = shares or [noise(3, c) * 0.8 + 0.2 for c in range(CHANNELS)]
    return Grid(text, [[share] for share in shares], WIDE, colour)


def line(text: str, colour: str, shares: list[float] | None = None) -> Grid:
    """A vector, lying."""
    shares = shares or [noise(c, 5) * 0.8 + 0.2 for c in range(CHANNELS)]
    return Grid(text, [shares], WIDE, colour)


def square(text: str, seed: int = 1) -> Grid:
    """A matrix state."""
    channels = range(CHANNELS)
    return Grid(text, [[noise(r + seed, c + 2) * 0.8 + 0.1 for c in channels] for r in channels], WIDE)


ADDED: Row = [Sign("+"), column("key", KEY), Sign("×"), line("value", VALUE)]
FADING = [0.95, 0.8, 0.6, 0.9, 0.4, 0.7]

#: The picture of every page.
PICTURES: dict[str, list[Row]] = {
    "attention": [
        [allowed("attention", Causal()), allowed("sliding_window", SlidingWindow(5, 0))],
    ],
    "sparse": [
        [
            pattern("big_bird: window,\nfirst tokens, random", scattered),
            pattern("nsa: window, own block,\nand a chosen one", chosen),
            pattern(
                "look-ups: some tokens\nread all, others nothing", lambda i, j: float(i in (5, 11, 12, 20))
            ),
        ],
    ],
    "convolutions": [
        [
            pattern("base_conv: 3 taps", lambda i, j: (1.0, 0.5, 0.8)[i - j] if i - j < 3 else 0.0),
            pattern("long_conv: a tap per distance", lambda i, j: noise(i - j, 3)),
            pattern(
                "hyena: a smooth filter\nthat fades",
                lambda i, j: exp(-(i - j) / 8) * (0.6 + 0.4 * cos(i - j)),
            ),
        ],
    ],
    "state_spaces": [
        [
            pattern(
                "h3: one fixed response\nfor all tokens",
                lambda i, j: abs(cos(pi * (i - j) / 9)) * 0.9 ** (i - j),
            ),
            pattern("mamba, mamba2: a token can\nclose what is behind it", remembered),
        ],
        [
            square("new state", 4),
            Sign("="),
            column("decay", DECAY, FADING),
            Sign("⊙"),
            square("old state"),
            Sign("+"),
            column("B", KEY),
            Sign("×"),
            line("Δ x", VALUE),
        ],
    ],
    "linear_attention": [
        [
            pattern("linear_attention, based:\nall of the past, by content", lambda i, j: noise(j, i)),
            pattern(
                "retention: the same,\nfading at a fixed rate", lambda i, j: noise(j, i) * 0.88 ** (i - j)
            ),
            pattern(
                "gated_linear_attention:\nfading as it is told", lambda i, j: noise(j, i) * remembered(i, j)
            ),
        ],
        [
            square("new state", 4),
            Sign("="),
            column("decay", DECAY, FADING),
            Sign("⊙"),
            square("old state"),
            *ADDED,
        ],
    ],
    "delta_rule": [
        [
            pattern("adding: all that was\nwritten under any key", lambda i, j: 1.0),
            pattern("delta_net: only the latest\nvalue of every key", replaced),
            pattern("gated_delta_net: the same,\nand fading", lambda i, j: replaced(i, j) * remembered(i, j)),
        ],
        [
            square("new state", 4),
            Sign("="),
            square("old state"),
            Sign("+"),
            column("key", KEY),
            Sign("×"),
            line("β (value − what the state\nholds for the key)", VALUE),
        ],
    ],
    "rwkv": [
        [
            pattern(
                "rwkv4, one channel:\na fading mean",
                lambda i, j: 1.0 if i == j else noise(j, 4) * 0.88 ** (i - j - 1),
            ),
            pattern(
                "rwkv5: by content, fading;\na bonus for the present",
                lambda i, j: 1.0 if i == j else noise(j, i) * 0.9 ** (i - j),
            ),
            pattern(
                "rwkv7: fading as told,\nand keys are replaced",
                lambda i, j: replaced(i, j) * remembered(i, j),
            ),
        ],
        [
            square("new state", 4),
            Sign("="),
            column("decay", DECAY, FADING),
            Sign("⊙"),
            square("old state"),
            Sign("−"),
            column("a κ", KEY),
            Sign("×"),
            line("what it holds for κ", STATE),
            *ADDED,
        ],
    ],
    "test_time_training": [
        [pattern("mini-batches of 6 tokens:\neach starts from one model", trained)],
        [
            square("model after\nthe mini-batch", 4),
            Sign("="),
            square("model\nbefore it"),
            Sign("− Σ rate ×"),
            square("slope of the error\nat one token", 2),
        ],
    ],
}


# --- tables ---

#: Channels and tokens of the tables of states.
DIM, LENGTH = 128, 256
#: What stands in the table of each page.
STATES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "attention": [
        ("attention", {"num_heads": 2}),
        ("attention", {"num_heads": 2, "num_kv_heads": 1}),
        ("sliding_window", {"num_heads": 2, "window_size": 64}),
    ],
    "sparse": [
        ("big_bird", {"num_heads": 2}),
        ("nsa", {"num_heads": 2}),
        ("sigmoid_lookups", {"num_heads": 2}),
        ("random_lookups", {"num_heads": 2}),
        ("programmatic_lookups", {"num_heads": 2}),
    ],
    "convolutions": [
        ("base_conv", {}),
        ("base_conv", {"kernel_size": None, "max_length": 1024}),
        ("long_conv", {"max_length": 1024}),
        ("implicit_long_conv", {"max_length": 1024}),
        ("hyena", {"max_length": 1024}),
    ],
    "state_spaces": [
        ("h3", {"state_dim": 64}),
        ("mamba", {}),
        ("mamba2", {"state_dim": 64}),
        ("mamba2", {"state_dim": 16}),
    ],
    "linear_attention": [
        ("linear_attention", {}),
        ("linear_attention", {"feature_map": "taylor"}),
        ("based", {}),
        ("retention", {"num_heads": 2}),
        ("gated_linear_attention", {"num_heads": 2}),
    ],
    "delta_rule": [
        ("delta_net", {"num_heads": 2}),
        ("delta_net", {"num_heads": 1}),
        ("gated_delta_net", {"num_heads": 2}),
    ],
    "rwkv": [("rwkv4", {}), ("rwkv5", {}), ("rwkv7", {})],
    "test_time_training": [("ttt_linear", {"num_heads": 2}), ("ttt_mlp", {"num_heads": 2})],
}


def states(page: str) -> str:
    """The states of a page's mixers after reading some tokens: elements, bytes, and as papers count them."""
    table = f"State after {LENGTH} tokens, with {DIM} channels in float32:\n\n"
    table += "| mixer | elements | bytes | elements as published |\n|---|---|---|---|\n"
    for name, options in STATES[page]:
        mixer = gatework.create_mixer(name, DIM, **options).eval()
        ids = {"tokens": torch.zeros(1, LENGTH, dtype=torch.long)} if mixer.reads_tokens else {}
        with torch.no_grad():
            _, state = mixer.prefill(torch.zeros(1, LENGTH, DIM), **ids)
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        published = mixer.published_state_size(LENGTH)
        counted = "–" if published is None else f"{published:,}"
        given = ", ".join(f"`{option}={value!r}`" for option, value in options.items())
        label = f"`{name}`" + (f" with {given}" if given else "")
        table += f"| {label} | {mixer.state_size(LENGTH):,} | {size:,} | {counted} |\n"
    return table


def entries() -> str:
    """What the registry says of every mixer, in the order of the pages."""
    table = "| mixer | state | cost | what it is |\n|---|---|---|---|\n"
    for name in dict.fromkeys(name for page in STATES for name, _ in STATES[page]):
        entry = mixer_entry(name)
        table += f"| `{name}` | {entry.state} | {entry.cost} | {entry.summary} |\n"
    return table


def between(page: str, name: str, table: str) -> str:
    """Put a table between the marks of that name."""
    start, end = f"<!-- {name}: made by mixer_pictures.py -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return before + start + "\n" + table + "\n" + end + rest.split(end)[1]


# --- drawing ---


def files() -> dict[Path, str]:
    """Every picture and every page with a table, and what it holds."""
    made = {FOLDER / f"{name}.svg": svg(rows) for name, rows in PICTURES.items()}
    for name in STATES:
        path = FOLDER / f"{name}.md"
        made[path] = between(path.read_text(encoding="utf-8"), "states", states(name))
    index = FOLDER / "index.md"
    return made | {index: between(index.read_text(encoding="utf-8"), "registry", entries())}


def svg(rows: list[Row]) -> str:
    """Draw rows of grids and signs, each row centred on its own middle."""
    drawing, top, width = "", 0, 0
    for row in rows:
        tall = max(height_of(item) for item in row)
        lines = max(item.text.count("\n") + 1 for item in row if isinstance(item, Grid))
        left = 0
        for item in row:
            wide = width_of(item)
            middle = left + wide // 2
            if isinstance(item, Sign):
                drawing += words(item.text, middle, top + tall // 2 + 5, 16)
            else:
                inner = len(item.shares[0]) * item.cell
                drawing += cells(item, middle - inner // 2, top + (tall - height_of(item)) // 2)
                for number, text in enumerate(item.text.split("\n")):
                    drawing += words(text, middle, top + tall + LINE * (number + 1), 12)
            left += wide + GAP
        width = max(width, left - GAP)
        top += tall + LINE * lines + BELOW
    top -= BELOW - 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" '
        f'font-family="sans-serif" text-anchor="middle" fill="{TEXT}">\n{drawing}</svg>\n'
    )


def width_of(item: Grid | Sign) -> int:
    """Pixels that a grid or its text, or a sign, is wide."""
    if isinstance(item, Sign):
        return 9 * len(item.text) + 2
    return max(len(item.shares[0]) * item.cell, max(7 * len(text) for text in item.text.split("\n")))


def height_of(item: Grid | Sign) -> int:
    """Pixels that a grid is tall, without its text."""
    return 16 if isinstance(item, Sign) else len(item.shares) * item.cell


def words(text: str, x: int, y: int, size: int) -> str:
    """Draw a line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}">{text}</text>\n'


def cells(grid: Grid, left: int, top: int) -> str:
    """Draw a grid: one path for all cells of about the same opacity, and runs of them as one rectangle."""
    size, paths = grid.cell, [""] * (STEPS + 1)
    for y, row in enumerate(grid.shares):
        levels = [round(share * STEPS) for share in row]
        start = 0
        for x in range(1, len(levels) + 1):
            if x == len(levels) or levels[x] != levels[start]:
                at, wide = f"{left + start * size} {top + y * size}", (x - start) * size
                paths[levels[start]] += f"M{at}h{wide}v{size}h{-wide}z"
                start = x
    wide, tall = len(grid.shares[0]) * size, len(grid.shares) * size
    drawing = f'<rect x="{left}" y="{top}" width="{wide}" height="{tall}" {EMPTY}/>\n'
    crisp = 'path shape-rendering="crispEdges"'
    for level, path in enumerate(paths):
        if level and path:
            opacity = f'fill-opacity="{level / STEPS:g}"'
            drawing += f'<{crisp} fill="{grid.colour}" {opacity} d="{path}"/>\n'
    return drawing


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
