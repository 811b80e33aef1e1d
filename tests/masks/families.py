"""Random masks of every family, each with its sizes and its meaning pair by pair in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from gatework import masks
from gatework.masks import Mask
from gatework.masks.earlier_blocks import hashed

#: Draws one value of a strategy. Masks are built from what is drawn in the test itself, not in a strategy:
#: checking annotations uses random numbers, which strategies must not.
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Sample(NamedTuple):
    """One mask, lengths that it goes with, and what it means."""

    mask: Mask
    q_length: int
    kv_length: int
    allows: Callable[[int, int], bool]


def number(draw: Draw, least: int, most: int) -> int:
    return draw(st.integers(least, most))


def full(draw: Draw) -> Sample:
    return Sample(masks.Full(), number(draw, 0, 9), number(draw, 0, 9), lambda i, j: True)


def causal(draw: Draw) -> Sample:
    return Sample(masks.Causal(), number(draw, 0, 19), number(draw, 0, 19), lambda i, j: j <= i)


def sliding_window(draw: Draw) -> Sample:
    left, right = number(draw, 0, 9), number(draw, 0, 9)
    lengths = number(draw, 0, 19), number(draw, 0, 19)
    return Sample(masks.SlidingWindow(left, right), *lengths, lambda i, j: i - left <= j <= i + right)


def prefix_lm(draw: Draw) -> Sample:
    prefix, official = number(draw, 0, 12), draw(st.booleans())
    mask = masks.PrefixLM(prefix, compat="official" if official else None)
    lengths = number(draw, 0, 19), number(draw, 0, 19)
    return Sample(mask, *lengths, lambda i, j: j <= i or j < prefix or (official and j == prefix))


def global_window(draw: Draw) -> Sample:
    window, kind = number(draw, 0, 5), number(draw, 0, 2)
    own = number(draw, 0, 12)
    first = (own, window, 2 * window)[kind]
    mask = (
        masks.GlobalWindow(window, own),
        masks.GlobalWindow(window),
        masks.GlobalWindow(window, compat="official"),
    )[kind]
    lengths = number(draw, 0, 24), number(draw, 0, 24)
    return Sample(mask, *lengths, lambda i, j: abs(i - j) <= window or i < first or j < first)


def block_causal(draw: Draw) -> Sample:
    block = number(draw, 1, 7)
    lengths = number(draw, 0, 19), number(draw, 0, 19)
    return Sample(masks.BlockCausal(block), *lengths, lambda i, j: j < (i // block + 1) * block)


def documents(draw: Draw) -> tuple[list[int], list[tuple[int, int]]]:
    """Lengths of documents, empty ones among them, and for each position its document and place in it."""
    lengths = draw(st.lists(st.integers(0, 9), max_size=5))
    return lengths, [(number, place) for number, length in enumerate(lengths) for place in range(length)]


def document(draw: Draw) -> Sample:
    lengths, at = documents(draw)
    return Sample(masks.Document(lengths), len(at), len(at), lambda i, j: at[i][0] == at[j][0])


def causal_document(draw: Draw) -> Sample:
    lengths, at = documents(draw)
    cumulative = torch.tensor([0, *lengths]).cumsum(0)
    mask = masks.CausalDocument.from_cu_seqlens(cumulative)
    return Sample(mask, len(at), len(at), lambda i, j: at[i][0] == at[j][0] and j <= i)


def prefix_lm_document(draw: Draw) -> Sample:
    lengths, at = documents(draw)
    prefix, official = number(draw, 0, 6), draw(st.booleans())
    mask = masks.PrefixLMDocument(lengths, prefix, compat="official" if official else None)

    def allows(i: int, j: int) -> bool:
        return at[i][0] == at[j][0] and (j <= i or at[j][1] < prefix + official)

    return Sample(mask, len(at), len(at), allows)


def shared_question(draw: Draw) -> Sample:
    lengths, at = documents(draw)

    def allows(i: int, j: int) -> bool:
        return (at[i][0] == at[j][0] and j <= i) or (at[j][0] == 0 and at[i][0] != 0)

    return Sample(masks.SharedQuestion(lengths), len(at), len(at), allows)


def causal_blockwise(draw: Draw) -> Sample:
    lengths, at = documents(draw)
    last = len(lengths) - 1

    def allows(i: int, j: int) -> bool:
        return (at[i][0] == at[j][0] and j <= i) or (at[i][0] == last and at[j][0] != last)

    return Sample(masks.CausalBlockwise(lengths), len(at), len(at), allows)


def block_causal_document(draw: Draw) -> Sample:
    lengths, at = documents(draw)
    block = number(draw, 1, 5)

    def allows(i: int, j: int) -> bool:
        return at[i][0] == at[j][0] and at[j][1] < (at[i][1] // block + 1) * block

    return Sample(masks.BlockCausalDocument(lengths, block), len(at), len(at), allows)


def block_sparse(draw: Draw) -> Sample:
    q_sizes, kv_sizes = (draw(st.lists(st.integers(1, 5), max_size=5)) for _ in range(2))
    kept = {cell for cell in product(range(len(q_sizes)), range(len(kv_sizes))) if draw(st.booleans())}
    block_map = torch.zeros(len(q_sizes), len(kv_sizes), dtype=torch.bool)
    for cell in kept:
        block_map[cell] = True
    rows, columns = (
        [index for index, size in enumerate(sizes) for _ in range(size)] for sizes in (q_sizes, kv_sizes)
    )
    sizes = torch.tensor(q_sizes, dtype=torch.int64), torch.tensor(kv_sizes, dtype=torch.int32)
    mask = masks.BlockSparse(block_map, *sizes)
    return Sample(mask, len(rows), len(columns), lambda i, j: (rows[i], columns[j]) in kept)


def random_blocks(draw: Draw) -> Sample:
    block, count, seed = number(draw, 1, 5), number(draw, 0, 3), number(draw, 0, 9)

    def allows(i: int, j: int) -> bool:
        row = torch.tensor(i // block)
        draws = [int(hashed(seed, row, torch.tensor(k))) % (i // block) for k in range(count) if i >= block]
        return j // block in draws

    lengths = number(draw, 0, 24), number(draw, 0, 24)
    return Sample(masks.RandomBlocks(block, count, seed), *lengths, allows)


def compressed_blocks(draw: Draw) -> Sample:
    block, first = number(draw, 1, 5), number(draw, 0, 3)
    lengths = number(draw, 0, 24), number(draw, 0, 12)
    mask = masks.CompressedBlocks(block, first)
    return Sample(mask, *lengths, lambda i, j: j < first or (j - first + 1) * block - 1 < i)


def slices(draw: Draw) -> Sample:
    bounds = st.tuples(*[st.integers(0, 16)] * 4, st.sampled_from(masks.slices.KINDS))
    drawn = [
        (min(q, q_end), max(q, q_end), min(k, k_end), max(k, k_end), kind)
        for q, q_end, k, k_end, kind in draw(st.lists(bounds, max_size=4))
    ]

    def paints(one: tuple[int, int, int, int, str], i: int, j: int) -> bool:
        q, q_end, k, k_end, kind = one
        row, column, height, width = i - q, j - k, q_end - q, k_end - k
        if not (q <= i < q_end and k <= j < k_end):
            return False
        under = column - row <= width - height or kind in ("full", "inverse_causal")
        return under and (column >= row or kind in ("full", "causal"))

    lengths = number(draw, 0, 19), number(draw, 0, 19)
    return Sample(masks.Slices(drawn), *lengths, lambda i, j: any(paints(one, i, j) for one in drawn))


def on_grid(
    mask: Mask,
    q_shape: list[int],
    kv_shape: list[int],
    allows: Callable[[int, int, int], bool],
) -> Sample:
    """A mask that is a product over the axes: ``allows(axis, i, j)``."""
    queries, keys = (list(product(*map(range, shape))) for shape in (q_shape, kv_shape))

    def pair(i: int, j: int) -> bool:
        return all(allows(axis, *each) for axis, each in enumerate(zip(queries[i], keys[j], strict=True)))

    return Sample(mask, len(queries), len(keys), pair)


def neighborhood(draw: Draw) -> Sample:
    axes = number(draw, 1, 3)
    window = [number(draw, 1, (7, 4, 3)[axes - 1]) for _ in range(axes)]
    dilation = [number(draw, 1, (4, 2, 2)[axes - 1]) for _ in range(axes)]
    stride = [number(draw, 1, size) for size in window]
    is_causal = [draw(st.booleans()) for _ in range(axes)]
    shape = [size * gap + number(draw, 0, 9 // axes) for size, gap in zip(window, dilation, strict=True)]
    mask = masks.Neighborhood(shape, window, stride=stride, dilation=dilation, is_causal=is_causal)

    def allows(axis: int, i: int, j: int) -> bool:
        w, s, d = window[axis], stride[axis], dilation[axis]
        if i % d != j % d:
            return False
        i, j, length = i // d, j // d, len(range(i % d, shape[axis], d))
        if is_causal[axis]:
            leader = min(i // s * s + s - 1, length - 1)
            return max(leader - w + 1, 0) <= j <= i
        leader = min(i // s * s + s // 2, length - 1)
        # All windows of w places that exist; the one whose middle is nearest to the leader.
        start = min(range(length - w + 1), key=lambda start: abs(start + w // 2 - leader))
        return start <= j < start + w

    return on_grid(mask, shape, shape, allows)


def halo(draw: Draw) -> Sample:
    axes = number(draw, 1, 3)
    step = [number(draw, 1, 2) for _ in range(axes)]
    block = [size * number(draw, 1, 3) for size in step]
    shape = [size + number(draw, 0, 9 // axes) for size in block]
    size = [number(draw, 0, 3) for _ in range(axes)]
    mask = masks.Halo(shape, block, size, query_stride=step)
    q_shape = [len(range(0, length, each)) for length, each in zip(shape, step, strict=True)]

    def allows(axis: int, i: int, j: int) -> bool:
        start = i * step[axis] // block[axis] * block[axis]
        return start - size[axis] <= j < start + block[axis] + size[axis]

    return on_grid(mask, q_shape, shape, allows)


def windows(draw: Draw) -> Sample:
    axes = number(draw, 1, 3)
    window = [number(draw, 1, 4) for _ in range(axes)]
    shape = [size + number(draw, 0, 9 // axes) for size in window]
    shift = [number(draw, 0, size - 1) for size in window]
    mask = masks.Windows(shape, window, shift=shift)
    return on_grid(
        mask,
        shape,
        shape,
        lambda axis, i, j: (i - shift[axis]) // window[axis] == (j - shift[axis]) // window[axis],
    )


def grid(draw: Draw) -> Sample:
    axes = number(draw, 1, 3)
    size, gap = ([number(draw, 1, 4 - axes // 2) for _ in range(axes)] for _ in range(2))
    shape = [count * step for count, step in zip(size, gap, strict=True)]
    return on_grid(masks.Grid(shape, size), shape, shape, lambda axis, i, j: i % gap[axis] == j % gap[axis])


FAMILIES: dict[str, Callable[[Draw], Sample]] = {
    made.__name__: made
    for made in (
        full,
        causal,
        sliding_window,
        prefix_lm,
        global_window,
        block_causal,
        document,
        causal_document,
        prefix_lm_document,
        shared_question,
        causal_blockwise,
        block_causal_document,
        block_sparse,
        random_blocks,
        compressed_blocks,
        slices,
        neighborhood,
        halo,
        windows,
        grid,
    )
}


def combination(draw: Draw) -> Sample:
    """Two masks of one size, or one and its complement, with the queries from some position on."""
    # Blocks of combinations are told apart exactly where one mask is constant on pieces; this one never is.
    first = FAMILIES[draw(st.sampled_from(sorted(FAMILIES.keys() - {"compressed_blocks"})))](draw)
    near = number(draw, 0, 6)
    window, other = masks.SlidingWindow(near, 2), number(draw, 0, 2)

    def close(i: int, j: int) -> bool:
        return i - near <= j <= i + 2

    mask, allows = (
        (first.mask & window, lambda i, j: first.allows(i, j) and close(i, j)),
        (first.mask | window, lambda i, j: first.allows(i, j) or close(i, j)),
        (~(first.mask & ~window), lambda i, j: not first.allows(i, j) or close(i, j)),
    )[other]
    offset = number(draw, 0, first.q_length)
    return Sample(
        mask.with_query_offset(offset),
        first.q_length - offset,
        first.kv_length,
        lambda i, j: allows(i + offset, j),
    )


def dense(sample: Sample) -> torch.Tensor:
    """The mask by its meaning."""
    rows = [[sample.allows(i, j) for j in range(sample.kv_length)] for i in range(sample.q_length)]
    return torch.tensor(rows, dtype=torch.bool).reshape(sample.q_length, sample.kv_length)


def edges(draw: Draw, length: int) -> torch.Tensor:
    """Edges of blocks of any sizes."""
    return torch.tensor(sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=6))}))
