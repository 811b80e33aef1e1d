"""The simulator of neighbourhood attention under tiles, against counting tiles of the mask over all pairs."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.bench.gna import Simulation, end_to_end, simulate, simulate_flattened
from gatework.masks import Neighborhood


@st.composite
def cases(draw) -> dict[str, Any]:
    """A small grid of one to three axes, with any window, stride, dilation and tiles."""
    axes = draw(st.integers(1, 3))
    most = {1: 40, 2: 10, 3: 5}[axes]
    grid = [draw(st.integers(1, most)) for _ in range(axes)]
    dilation = [draw(st.integers(1, min(3, length))) for length in grid]
    window = [draw(st.integers(1, length // gap)) for length, gap in zip(grid, dilation, strict=True)]
    return {
        "grid": grid,
        "window": window,
        "stride": [draw(st.integers(1, size)) for size in window],
        "dilation": dilation,
        "is_causal": [draw(st.booleans()) for _ in grid],
        "q_tile": [draw(st.integers(1, 5)) for _ in grid],
        "kv_tile": [draw(st.integers(1, 5)) for _ in grid],
    }


class Counted:
    """Everything the simulator says, from the mask over all pairs.

    Attributes:
        dense: The mask.
        classes: Dilation class of each token, and its place in the class.
        tiles: For each tile of queries its tokens.
    """

    def __init__(self, simulation: Simulation) -> None:
        mask = simulation.mask
        self.simulation, self.mask = simulation, mask
        self.dense = mask.to_dense(mask.q_size, mask.q_size).numpy()
        tokens = [*itertools.product(*map(range, mask.shape))]
        self.places = [
            (
                tuple(i % gap for i, gap in zip(token, mask.dilation, strict=True)),
                tuple(i // gap for i, gap in zip(token, mask.dilation, strict=True)),
            )
            for token in tokens
        ]
        self.tiles = self.group(simulation.q_tile)

    def group(self, size: tuple[int, ...]) -> dict[tuple[tuple[int, ...], ...], list[int]]:
        groups = defaultdict(list)
        for index, (kind, place) in enumerate(self.places):
            groups[kind, tuple(p // n for p, n in zip(place, size, strict=True))].append(index)
        return dict(groups)

    def static(self) -> dict[tuple[tuple[int, ...], ...], tuple[int, int]]:
        """For each tile of queries the key tiles that it visits, and how many of those it sees entirely."""
        keys = self.group(self.simulation.kv_tile)
        found = {}
        for tile, queries in self.tiles.items():
            parts = [self.dense[np.ix_(queries, tokens)] for tokens in keys.values()]
            found[tile] = sum(part.any() for part in parts), sum(part.all() for part in parts)
        return found

    def dynamic(self) -> list[tuple[int, int]]:
        """The same where key tiles are cut from the first place that a tile of queries sees."""
        number = {place: index for index, place in enumerate(self.places)}
        found = []
        for (kind, _), queries in self.tiles.items():
            seen = np.array([self.places[key][1] for key in np.flatnonzero(self.dense[queries].any(0))])
            starts = [
                range(low, high + 1, size)
                for low, high, size in zip(
                    seen.min(0).tolist(), seen.max(0).tolist(), self.simulation.kv_tile, strict=True
                )
            ]
            corners = [*itertools.product(*starts)]
            full = 0
            for corner in corners:
                places = itertools.product(
                    *(range(c, c + n) for c, n in zip(corner, self.simulation.kv_tile, strict=True))
                )
                tokens = [number.get((kind, place)) for place in places]
                full += None not in tokens and bool(self.dense[np.ix_(queries, tokens)].all())
            found.append((len(corners), full))
        return found

    def flattened(self, q_tokens: int, kv_tokens: int) -> list[int]:
        """Key tiles visited if each class is one sequence, cut into runs."""
        classes = defaultdict(list)
        for index, (kind, _) in enumerate(self.places):
            classes[kind].append(index)
        found = []
        for tokens in classes.values():
            for start in range(0, len(tokens), q_tokens):
                queries = tokens[start : start + q_tokens]
                runs = [tokens[at : at + kv_tokens] for at in range(0, len(tokens), kv_tokens)]
                found.append(sum(self.dense[np.ix_(queries, keys)].any() for keys in runs))
        return found


@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_visits_are_those_of_the_mask_over_all_pairs(case):
    simulation = simulate(**case)
    counted = Counted(simulation)
    visits = counted.static()
    static = simulation.static
    assert static.q_tiles == len(visits)
    assert static.worst == max(visited for visited, _ in visits.values())
    assert static.visited == sum(visited for visited, _ in visits.values())
    assert static.full == sum(full for _, full in visits.values())
    assert static.is_perfect == all(visited == full for visited, full in visits.values())
    tokens = simulation.mask.q_size
    assert simulation.exact_ideal_speedup == pytest.approx(tokens**2 / counted.dense.sum())


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_dynamic_visits_are_those_of_the_mask_over_all_pairs(case):
    simulation = simulate(**case)
    visits = Counted(simulation).dynamic()
    dynamic = simulation.dynamic
    assert dynamic.q_tiles == len(visits)
    assert dynamic.worst == max(visited for visited, _ in visits)
    assert dynamic.visited == sum(visited for visited, _ in visits)
    assert dynamic.full == sum(full for _, full in visits)
    if simulation.is_divisible:
        assert dynamic.is_perfect


@settings(max_examples=150, deadline=None)
@given(case=cases(), q_tokens=st.integers(1, 20), kv_tokens=st.integers(1, 20))
def test_flattened_visits_are_those_of_the_mask_over_all_pairs(case, q_tokens, kv_tokens):
    simulation = simulate(**case)
    visits = Counted(simulation).flattened(q_tokens, kv_tokens)
    found = simulate_flattened(simulation.mask, q_tokens, kv_tokens)
    assert (found.q_tiles, found.worst, found.visited) == (len(visits), max(visits), sum(visits))
    assert found.full is None
    assert found.full_share is None
    assert not found.is_perfect


def test_flattened_visits_do_not_depend_on_the_memory_used(monkeypatch):
    mask = Neighborhood((6, 7, 9), (3, 4, 5), stride=(1, 2, 3), is_causal=(False, True, False))
    whole = simulate_flattened(mask, 16, 8)
    monkeypatch.setattr("gatework.bench.gna.flattened._CHUNK", 1)
    assert simulate_flattened(mask, 16, 8) == whole


def test_every_tile_of_queries_is_known():
    simulation = simulate((9, 14), (5, 6), stride=(1, 3), dilation=(1, 2), q_tile=(4, 2), kv_tile=(2, 3))
    by_tile = simulation.visits_by_tile()
    # Axis 1 has two classes of seven tokens, so four tiles of queries each.
    assert by_tile.shape == (3, 8)
    expected = {}
    for (kind, tile), (visited, _) in Counted(simulation).static().items():
        expected[tile[0], 4 * kind[1] + tile[1]] = visited
    for place, visited in expected.items():
        assert by_tile[place] == visited
    assert int(by_tile.sum()) == simulation.static.visited


def test_by_hand():
    # 12 tokens, windows of 4: the queries 4 to 7 see 2 to 8, in tiles of 4 keys that is all three.
    simulation = simulate(12, 4, q_tile=4, kv_tile=4)
    assert simulation.visits_by_tile().tolist() == [2, 3, 2]
    assert simulation.static.speedup == 1.0
    assert simulation.static.mean_speedup == pytest.approx(9 / 7)
    assert simulation.ideal_speedup == simulation.exact_ideal_speedup == 3.0
    # From 2 on, two tiles of 4 hold the seven keys.
    assert simulation.dynamic.worst == 2
    blocked = simulate(12, 4, stride=4, q_tile=4, kv_tile=4)
    assert blocked.static.is_perfect
    assert blocked.static.speedup == blocked.ideal_speedup


def test_a_whole_axis_and_one_number_for_all():
    assert simulate((6, 8), -1, q_tile=2, kv_tile=4).mask.window == (6, 8)
    assert simulate((6, 8), (-1, 4), q_tile=2, kv_tile=4) == simulate(
        [6, 8], [6, 4], stride=1, dilation=(1, 1), is_causal=False, q_tile=(2, 2), kv_tile=(4, 4)
    )
    whole = simulate((6, 8), -1, q_tile=2, kv_tile=4)
    assert whole.static.is_perfect
    assert whole.static.speedup == whole.ideal_speedup == 1.0


def test_deployed_dilated_windows():
    """A window that fills its dilation class gains what its class is smaller, if tiles fit the class."""
    simulation = simulate((16, 44, 80), (16, 4, 16), dilation=(1, 11, 5), q_tile=(8, 4, 8), kv_tile=(4, 4, 8))
    assert simulation.static.speedup == simulation.ideal_speedup == 55.0
    # Tiles of eight in a class of four are half empty, and twice as many as over the grid.
    half = simulate((16, 44, 80), (16, 4, 16), dilation=(1, 11, 5), q_tile=(4, 8, 8), kv_tile=(4, 4, 8))
    assert half.static.speedup == pytest.approx(55 * 6 / 11)


def test_end_to_end():
    assert end_to_end(4.0, 0.5) == pytest.approx(1 / (0.5 + 0.125))
    assert end_to_end(4.0, 0.5, 0.5) == pytest.approx(1 / (0.75 + 0.0625))
    assert end_to_end(7.0, 0.0) == 1.0
    assert end_to_end(7.0, 1.0) == pytest.approx(7.0)


def test_counting_is_quick_for_long_axes():
    simulation = simulate(1 << 20, 4096, stride=64, q_tile=256, kv_tile=128)
    # Leaders are in the middle of 64, so that windows begin 32 after a key tile; four groups span 192 more.
    assert simulation.static.worst == math.ceil((32 + 4096 + 192) / 128)
    assert isinstance(simulation.visits_by_tile(), torch.Tensor)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": (4, 4, 4, 4)}, ValueError, r"grid must have 1 to 3 axes, got \(4, 4, 4, 4\)"),
        ({"grid": ()}, ValueError, "grid must have 1 to 3 axes"),
        ({"grid": (0, 8)}, ValueError, r"grid\[0\] must be at least 1, got 0"),
        ({"grid": (8.5, 8)}, TypeError, r"grid\[0\] must be an integer, got 8.5"),
        ({"window": (9, 2)}, ValueError, "window . dilation must fit the axis of 8, got window 9"),
        ({"window": 0}, ValueError, r"window\[0\] must be at least 1, got 0"),
        ({"window": -2}, ValueError, r"window\[0\] must be at least -1, got -2"),
        ({"window": (4,)}, ValueError, r"window must be one number or 2, one for each axis, got \(4,\)"),
        ({"window": "44"}, TypeError, "window must be integers in one row, got '44'"),
        ({"stride": 5}, ValueError, "stride must be at most the window 4, got 5"),
        ({"dilation": 3}, ValueError, "got window 4 . dilation 3"),
        ({"is_causal": 1}, TypeError, "is_causal must be True or False"),
        ({"q_tile": (2, 2, 2)}, ValueError, "q_tile must be one number or 2, one for each axis"),
        ({"kv_tile": 0}, ValueError, "kv_tile must be at least 1, got 0"),
        ({"kv_tile": True}, TypeError, "kv_tile must be an integer, got True"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"grid": (8, 8), "window": 4, "q_tile": 2, "kv_tile": 2}
    assert simulate(**good).static.worst > 0
    with pytest.raises(error, match=message):
        simulate(**{**good, **change})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0.5), ValueError, "speedup must be positive, got 0"),
        ((float("nan"), 0.5), ValueError, "speedup must be positive, got nan"),
        ((2, 1.5), ValueError, r"attention_share must be between 0 and 1, got 1\.5"),
        ((2, 0.5, -1), ValueError, "sparse_steps must be between 0 and 1, got -1"),
        ((2, "half"), TypeError, "attention_share must be a number, got 'half'"),
    ],
)
def test_bad_shares_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        end_to_end(*arguments)
