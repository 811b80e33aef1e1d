"""The published tables: every number of the golden file, and how far the paper's own are from ours."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from gatework.bench.gna import PUBLISHED, end_to_end, gna, simulate
from gatework.bench.gna.axis import axis_counts
from gatework.bench.gna.kernels import TILE_PAIRS, offered

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "gna" / "sim_tables.safetensors"
#: Ours by the golden file's name for them.
COLUMNS = {
    "worst_visited_kv_tiles": "worst_visited",
    "total_kv_tiles": "kv_tiles",
    "speedup_static": "speedup",
    "speedup_dynamic": "dynamic_speedup",
    "sa_share": "attention_share",
    "gna_step_fraction": "sparse_steps",
    "e2e_all_steps": "end_to_end",
    "e2e_partial": "end_to_end_partial",
    "paper_e2e_all": "paper_end_to_end",
    "paper_e2e_partial": "paper_end_to_end_partial",
}


@pytest.fixture(scope="module")
def golden() -> tuple[list[dict[str, float]], dict[str, object]]:
    with safe_open(GOLDEN, framework="pt") as file:
        kwargs = json.loads(file.metadata()["kwargs"])
        table = file.get_tensor("out/table").tolist()
    return [dict(zip(kwargs["columns"], row, strict=True)) for row in table], kwargs


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    return gna().rows


def test_every_golden_number(golden, rows):
    expected, _ = golden
    assert len(rows) == len(expected) == 21
    for row, theirs in zip(rows, expected, strict=True):
        for name, letter in {
            "grid": "L",
            "window": "w",
            "stride": "s",
            "q_tile": "tq",
            "kv_tile": "tk",
        }.items():
            sizes = [int(theirs[f"{letter}{axis}"]) for axis in range(3)]
            assert row[name] == (sizes[1:] if theirs["L0"] == 1 else sizes), name
        for name, ours in COLUMNS.items():
            # The file holds float32.
            assert row[ours] == pytest.approx(theirs[name], rel=1e-6), (row["case"], row["stride"], name)


def test_the_paper_is_as_near_as_the_golden_file_says(golden, rows):
    _, kwargs = golden
    names = kwargs["rows"]
    assert Counter(row["case"] for row in rows).most_common() == [
        (case.name, count)
        for case, (_, count) in zip(
            sorted(PUBLISHED, key=lambda case: -len(case.strides)), Counter(names).most_common(), strict=True
        )
    ]
    for name, most in kwargs["max_abs_dev"].items():
        mine = [row for row, its in zip(rows, names, strict=True) if its == name]
        off = max(
            abs(row[ours] - row[f"paper_{ours}"])
            for row in mine
            for ours in ("end_to_end", "end_to_end_partial")
        )
        assert off == pytest.approx(most, abs=1e-4), name


def test_all_published_configurations_take_less_than_a_second():
    axis_counts.cache_clear()
    start = time.perf_counter()
    for case in PUBLISHED:
        for stride in case.strides:
            simulate(
                case.grid,
                case.window,
                stride=stride,
                q_tile=case.tiles[0].q_tile,
                kv_tile=case.tiles[0].kv_tile,
            )
    assert time.perf_counter() - start < 1.0


def test_blocked_attention_of_the_paper_is_another_pair_of_tiles():
    """End to end the paper's simulator has 1.44 where the stride is the window; its other tiles exceed it."""
    blocked = {"grid": (30, 48, 80), "window": (30, 40, 40), "stride": (30, 40, 40)}
    same = simulate(**blocked, q_tile=(4, 8, 8), kv_tile=(2, 8, 8)).static.speedup
    other = simulate(**blocked, q_tile=(2, 16, 8), kv_tile=(2, 8, 8)).static.speedup
    assert (same, other) == pytest.approx((2.4, 2.0))
    assert end_to_end(same, 0.607) == pytest.approx(1.55, abs=0.005)
    assert end_to_end(other, 0.607) == pytest.approx(1.44, abs=0.005)


def test_tiles_offered():
    sizes = {"blackwell": (256, 128), "hopper": (128, 128), "flex": (64, 64)}
    for pair in TILE_PAIRS:
        volumes = []
        for tile in (pair.q_tile, pair.kv_tile):
            volume = 1
            for size in tile:
                volume *= size
            volumes.append(volume)
        assert tuple(volumes) == sizes[pair.kernel], pair
    assert len(set(TILE_PAIRS)) == len(TILE_PAIRS)
    assert [len(offered(axes)) for axes in (1, 2, 3)] == [1, 8, 12]
    assert [len(offered(3, kernel)) for kernel in sizes] == [7, 2, 3]


@pytest.mark.bad_input
def test_tiles_not_offered():
    with pytest.raises(ValueError, match="kernel must be one of blackwell, hopper, flex, got 'ampere'"):
        offered(2, "ampere")
    with pytest.raises(ValueError, match="no tiles of kernel 'hopper' are known for 1-D grids"):
        offered(1, "hopper")
