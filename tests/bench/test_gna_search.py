"""The search for strides, against simulating every stride there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.bench.gna import PUBLISHED, Simulation, StrideSearch, search_strides, search_tiles, simulate
from gatework.bench.gna.axis import axis_counts
from gatework.bench.gna.search import _options


@st.composite
def cases(draw) -> dict[str, Any]:
    """A small grid of one to three axes with tiles; causal now and then, since nothing is perfect there."""
    axes = draw(st.integers(1, 3))
    most = {1: 30, 2: 14, 3: 7}[axes]
    grid = [draw(st.integers(1, most)) for _ in range(axes)]
    dilation = [draw(st.sampled_from([1, 1, min(2, length)])) for length in grid]
    window = [draw(st.integers(1, length // gap)) for length, gap in zip(grid, dilation, strict=True)]
    return {
        "grid": grid,
        "window": window,
        "dilation": dilation,
        "is_causal": [draw(st.sampled_from([False, False, False, True])) for _ in grid],
        "q_tile": [draw(st.integers(1, 4)) for _ in grid],
        "kv_tile": [draw(st.integers(1, 4)) for _ in grid],
    }


def visits(simulation: Simulation, tiling: str) -> Any:
    return simulation.static if tiling == "static" else simulation.dynamic


def every_stride(case: dict[str, Any], window: tuple[int, ...]) -> Iterator[Simulation]:
    for stride in itertools.product(*(range(1, size + 1) for size in window)):
        yield simulate(**{**case, "window": window}, stride=stride)


def size(simulation: Simulation) -> tuple[int, int, tuple[int, ...]]:
    stride = simulation.mask.stride
    return math.prod(stride), max(stride), stride


def smallest_perfect(case: dict[str, Any], window: tuple[int, ...], tiling: str) -> Simulation | None:
    perfect = [each for each in every_stride(case, window) if visits(each, tiling).is_perfect]
    return min(perfect, key=size, default=None)


@settings(max_examples=60, deadline=None)
@given(case=cases(), tiling=st.sampled_from(["static", "dynamic"]))
def test_nothing_is_missed(case, tiling):
    search = search_strides(**case, tiling=tiling)
    everything = sorted(every_stride(case, search.mask.window), key=size)

    perfect = {each.mask.stride for each in everything if visits(each, tiling).is_perfect}
    assert set(itertools.product(*search.perfect_by_axis)) == perfect
    assert search.perfect == smallest_perfect(case, search.mask.window, tiling)

    front: list[Simulation] = []
    for product in sorted({math.prod(each.mask.stride) for each in everything}):
        same = [each for each in everything if math.prod(each.mask.stride) == product]
        best = min(same, key=lambda each: (visits(each, tiling).worst, size(each)))
        if not front or visits(best, tiling).worst < visits(front[-1], tiling).worst:
            front.append(best)
    assert [*search.front] == front
    assert search.fastest == front[-1]

    reaching = [each for each in everything if visits(each, tiling).speedup >= each.ideal_speedup - 1e-9]
    assert search.reaching == (min(reaching, key=size) if reaching else None)
    assert {*search.front} <= {*search.candidates}


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 17), window=st.integers(1, 17), q_tile=st.integers(1, 5), kv_tile=st.integers(1, 5)
)
def test_windows_nearby_along_an_axis_are_the_nearest(length, window, q_tile, kv_tile):
    window = min(window, length)
    case = {"grid": (length,), "q_tile": q_tile, "kv_tile": kv_tile}
    search = search_strides(**case, window=(window,))
    found = {each.mask.window[0]: each for each in search.nearby}
    if search.perfect is not None:
        assert found == {window: search.perfect}
        return
    perfect = {size: smallest_perfect(case, (size,), "static") for size in range(1, length + 1)}
    known = {size: each for size, each in perfect.items() if each is not None}
    smaller = max((size for size in known if size < window), default=None)
    larger = min((size for size in known if size > window), default=None)
    assert found == {size: known[size] for size in (smaller, larger) if size is not None}
    distances = [abs(math.log(each.mask.window[0] / window)) for each in search.nearby]
    assert distances == sorted(distances)


def test_windows_nearby_keep_the_axes_that_are_perfect():
    search = search_strides((64, 64), (13, 16), q_tile=8, kv_tile=8)
    assert search.perfect is None
    assert search.perfect_by_axis[0] == ()
    assert [(each.mask.window, each.mask.stride) for each in search.nearby] == [
        ((16, 16), (16, 16)),
        ((8, 16), (8, 16)),
    ]
    assert all(each.static.is_perfect for each in search.nearby)


def test_windows_nearby_are_few():
    search = search_strides((64, 64, 64), (13, 13, 13), q_tile=(4, 8, 8), kv_tile=(2, 8, 8))
    assert search.perfect is None
    assert len(search.nearby) == 8
    assert search.nearby[0].mask.window == (12, 16, 16)


@pytest.mark.parametrize(
    ("case", "stride"),
    [*zip(PUBLISHED, [(16, 16), (16, 8, 8), (1, 8, 8), (1, 8, 16), (1, 8, 16)], strict=True)],
    ids=lambda value: getattr(value, "name", None),
)
def test_published_windows(case, stride):
    """The paper's strides are the smallest, but for one: 1x8x8 gains all that 1x32x8 does."""
    (tiles,) = case.tiles
    search = search_strides(case.grid, case.window, q_tile=tiles.q_tile, kv_tile=tiles.kv_tile)
    assert search.perfect is not None
    assert search.perfect.mask.stride == stride
    assert search.fastest == search.reaching == search.perfect
    assert search.perfect.share_of_ideal == pytest.approx(1.0)
    paper = search.at(case.strides[-1])
    assert paper.static.speedup == search.perfect.static.speedup


def test_deployed_windows_of_cosmos_predict():
    """Whole axes in time, and strides that suit the tiles offered for volumes."""
    searches = search_tiles((16, 44, 80), (-1, 12, 24), kernel="blackwell")
    assert searches[0].perfect is not None
    assert searches[0].tiles.q_tile == (8, 4, 8)
    assert searches[0].perfect.mask.stride == (1, 4, 8)


def test_long_windows_are_not_searched_to_the_end():
    _options.cache_clear()
    axis_counts.cache_clear()
    search = search_strides(1 << 17, 4096, q_tile=64, kv_tile=64)
    assert search.perfect is not None
    assert search.perfect.mask.stride == (128,)
    assert search.fastest == search.perfect
    assert search_strides(1 << 17, 4100, q_tile=64, kv_tile=64).fastest.mask.stride == (4,)
    assert axis_counts.cache_info().misses <= 128 + 4


def test_the_best_tiles_come_first():
    searches = search_tiles((30, 48, 80), (18, 24, 24))
    speedups = [search.fastest.static.speedup for search in searches]
    assert speedups == sorted(speedups, reverse=True)
    assert len(searches) == 12
    assert searches[0].perfect is not None
    assert isinstance(searches[0], StrideSearch)


@pytest.mark.bad_input
def test_bad_arguments_are_named():
    good: dict[str, Any] = {"grid": 8, "window": 4, "q_tile": 2, "kv_tile": 2}
    assert search_strides(**good).front
    with pytest.raises(ValueError, match="tiling must be one of static, dynamic, got 'fast'"):
        search_strides(**good, tiling="fast")
    with pytest.raises(ValueError, match="q_tile must be at least 1"):
        search_strides(**{**good, "q_tile": 0})
    with pytest.raises(ValueError, match=r"window . dilation must fit"):
        search_strides(**{**good, "window": 9})
    with pytest.raises(ValueError, match="kernel must be one of"):
        search_tiles(8, 4, kernel="mine")
