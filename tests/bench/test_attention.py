"""The benchmark as a whole: what is measured, refused, wrong, skipped, resumed, and what follows from it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from gatework.bench import AttentionBench, attention
from gatework.bench.attention import measure as measure_module
from gatework.bench.attention.result import COLUMNS, exponent
from gatework.files import FileError
from gatework.masks import SlidingWindow
from gatework.ops.attention import ENGINES
from gatework.ops.attention.options import Engine

TINY = {"num_heads": 2, "head_dims": [8], "repeats": 1, "min_time": 0.0, "memory": False, "progress": False}
RIGHT = ENGINES["reference"]


@pytest.fixture
def engines(monkeypatch):
    """Engines that are wrong, refuse, fail, and count their calls."""
    calls = []

    def counted(q, k, v, options):
        calls.append(q.shape[2])
        return RIGHT.run(q, k, v, options)

    def wrong(q, k, v, options):
        y, lse = RIGHT.run(q, k, v, options)
        return y * 1.01, lse

    def fail(q, k, v, options):
        raise RuntimeError("out of luck")

    def stumble(q, k, v, options):
        raise ValueError("too many values to unpack")

    made = {"counted": counted, "wrong": wrong, "fail": fail, "stumble": stumble}
    for name, run in made.items():
        monkeypatch.setitem(ENGINES, name, Engine(run))
    monkeypatch.setitem(ENGINES, "refuse", Engine(counted, lambda *_: "takes no mask on Tuesdays"))
    return calls


def test_every_cell_gets_its_numbers():
    bench = attention(
        ["window", "SlidingWindow(N // 4, 0)"],
        lengths=[32, 64],
        engines=["reference", "dense"],
        passes=["forward", "backward", "both"],
        **TINY,
    )
    assert len(bench.rows) == 2 * 2 * 2 * 3
    assert set(bench.frame["status"]) == {"measured"}
    assert list(bench.frame.columns) == list(COLUMNS)
    for row in bench.rows:
        density = (
            1.0
            if row["mask"] == "window"
            else SlidingWindow(row["length"] // 4, 0).density(*[row["length"]] * 2)
        )
        assert row["density"] == density
        work = (
            4
            * density
            * row["length"] ** 2
            * 2
            * 8
            * {"forward": 1, "backward": 2.5, "both": 3.5}[row["pass"]]
        )
        assert row["tflops"] == pytest.approx(work / row["seconds"] / 1e12)
        assert row["speedup"] == row["baseline_seconds"] / row["seconds"]
        assert row["share_of_ideal"] == pytest.approx(row["speedup"] * density)
        assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["error"] <= row["tolerance"]
        assert row["peak_bytes"] is None
        assert row["growth_lengths"] == 2
    pair = [row for row in bench.rows if row["engine"] == "dense" and row["pass"] == "both"][:2]
    assert pair[0]["growth"] == pytest.approx(math.log2(pair[1]["seconds"] / pair[0]["seconds"]))


@pytest.mark.parametrize(("power", "factor"), [(1, 3.0), (2, 0.5), (1.5, 1e-9)])
def test_the_exponent_is_that_of_a_power(power, factor):
    points = [(x, factor * x**power) for x in (64, 128, 1000, 4096)]
    assert exponent(points) == pytest.approx(power)
    assert exponent(points[:1] * 3) is None


def test_a_wrong_engine_is_never_timed(engines, monkeypatch):
    timed = []
    turns = measure_module.take_turns

    def spy(sides, **options):
        timed.extend(sides)
        return turns(sides, **options)

    monkeypatch.setattr(measure_module, "take_turns", spy)
    bench = attention(
        ["causal"], lengths=[16], engines=["wrong", "dense"], passes=["forward", "both"], **TINY
    )
    assert timed == ["no mask", "dense"] * 2
    wrong = [row for row in bench.rows if row["engine"] == "wrong"]
    assert [row["status"] for row in wrong] == ["wrong", "wrong"]
    assert all(row["error"] == pytest.approx(0.01, rel=1e-3) and row["seconds"] is None for row in wrong)
    assert "WRONG: output is off by 0.01 of its largest value" in bench.table()


def test_refusals_and_failures_say_why(engines):
    bench = attention(
        {"mine": "Causal()"},
        lengths=[16],
        engines=["refuse", "fail", "stumble", "dense"],
        **TINY,
    )
    found = {row["engine"]: (row["status"], row["reason"]) for row in bench.rows}
    assert found == {
        "refuse": ("refused", "takes no mask on Tuesdays"),
        "fail": ("failed", "RuntimeError: out of luck"),
        "stumble": ("failed", "ValueError: too many values to unpack"),
        "dense": ("measured", None),
    }
    table = bench.table()
    assert "refused: takes no mask on Tuesdays" in table
    assert max(map(len, table.splitlines())) <= 100


def test_a_mask_that_fits_no_length_is_refused_there():
    bench = attention(["Document.from_lengths([8, 8])"], lengths=[16, 20], engines=["dense"], **TINY)
    assert [row["status"] for row in bench.rows] == ["measured", "refused"]
    assert "16" in bench.rows[1]["reason"]


def test_what_needs_too_much_memory_is_skipped():
    bench = attention(
        ["causal", "window"], lengths=[64], engines=["reference", "dense"], max_memory=4096 * 4, **TINY
    )
    found = {(row["mask"], row["engine"]): row["status"] for row in bench.rows}
    assert found[("causal", "dense")] == "measured"  # its kernel knows the mask
    assert found[("window", "dense")] == "skipped"
    assert found[("causal", "reference")] == "skipped"
    assert "more than max_memory, 16 KiB" in bench.table()


def test_the_same_call_measures_only_what_is_missing(engines, tmp_path):
    options = {"lengths": [16, 24], "engines": ["counted", "dense"], "output": tmp_path / "bench", **TINY}
    bench = attention(["causal"], **options)
    assert {16, 24} == set(engines)
    before = {path.name: path.read_text() for path in (tmp_path / "bench" / "cells").iterdir()}
    engines.clear()
    attention(["causal"], **options)
    assert engines == []
    (lost,) = [
        cell.cell_id for cell in bench.plan.cells() if cell[0].length == 24 and cell.engine == "counted"
    ]
    (tmp_path / "bench" / "cells" / f"{lost}.json").unlink()
    again = attention(["causal"], **options)
    assert set(engines) == {24}
    after = {path.name: path.read_text() for path in (tmp_path / "bench" / "cells").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {f"{lost}.json"}
    assert again.missing == []


def test_an_interrupt_leaves_what_is_finished(engines, tmp_path, monkeypatch, capsys):
    def interrupt(q, k, v, options):
        if q.shape[2] == 24:
            raise KeyboardInterrupt
        return RIGHT.run(q, k, v, options)

    monkeypatch.setitem(ENGINES, "counted", Engine(interrupt))
    output = tmp_path / "bench"
    options = {
        "lengths": [16, 24],
        "engines": ["dense", "counted"],
        "output": output,
        **TINY,
        "progress": True,
    }
    with pytest.raises(KeyboardInterrupt):
        attention(["causal"], **options)
    assert "the same command measures the rest" in capsys.readouterr().err
    half = AttentionBench.open(output)
    assert [row["length"] for row in half.rows] == [16, 16]
    assert len(half.missing) == 2
    monkeypatch.setitem(ENGINES, "counted", RIGHT)
    assert len(attention(["causal"], **options).rows) == 4
    assert "[4/4]" in capsys.readouterr().err


@pytest.mark.bad_input
def test_other_options_in_the_same_directory_are_refused(tmp_path):
    options = {"engines": ["dense"], "output": tmp_path / "bench", **TINY}
    attention(["causal"], lengths=[16], **options)
    with pytest.raises(FileError, match=r"lengths is \[20\], there \[16\]"):
        attention(["causal"], lengths=[20], **options)
    bench = attention(["causal"], lengths=[20], overwrite=True, **options)
    assert [row["length"] for row in bench.rows] == [20]


def test_files_hold_the_same_rows(tmp_path):
    bench = attention(["causal"], lengths=[16], engines=["dense"], output=tmp_path / "bench", **TINY)
    stored = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert stored["schema"] == "gatework.bench/1"
    assert stored["cells"] == bench.rows
    assert {"torch", "numba", "cpu", "threads"} <= stored["environments"][0].keys()
    opened = AttentionBench.open(tmp_path / "bench")
    assert opened.rows == bench.rows
    lines = (tmp_path / "bench" / "results.csv").read_text().splitlines()
    assert lines[0].split(",") == list(COLUMNS)
    assert len(lines) == 2


@pytest.mark.bad_input
def test_a_tampered_measurement_is_named(tmp_path):
    attention(["causal"], lengths=[16], engines=["dense"], output=tmp_path, **TINY)
    (path,) = (tmp_path / "cells").iterdir()
    record = json.loads(path.read_text())
    for change in ({"status": "great"}, {"time": {}}, {"cell": {}}, {"baseline": None}):
        path.write_text(json.dumps(record | change))
        with pytest.raises(FileError, match="is broken"):
            _ = AttentionBench.open(tmp_path).rows


def test_grouped_heads_batches_and_masks_as_values():
    bench = attention(
        [SlidingWindow(3, 1)],
        lengths=[16],
        engines=["dense"],
        batch_size=2,
        num_kv_heads=1,
        dtypes=["bfloat16", "float64"],
        passes=["both"],
        **TINY,
    )
    assert [row["status"] for row in bench.rows] == ["measured"] * 2
    assert bench.rows[0]["expression"] == "SlidingWindow(left=3, right=1)"
    assert "2 heads of 8 on 1 key heads, batch 2" in bench.table()


def test_threads_are_set_and_given_back(monkeypatch):
    seen = []

    def look(q, k, v, options):
        seen.append(torch.get_num_threads())
        return RIGHT.run(q, k, v, options)

    monkeypatch.setitem(ENGINES, "look", Engine(look))
    before = torch.get_num_threads()
    attention(["full"], lengths=[8], engines=["look"], threads=before + 1, **TINY)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_peak_memory_is_measured_in_a_process_of_its_own():
    bench = attention(["window"], lengths=[1024], engines=["reference", "dense"], **TINY | {"memory": True})
    peaks = {row["engine"]: row["peak_bytes"] for row in bench.rows}
    assert peaks["reference"] > 2 * 1024**2 * 2 * 4  # scores of two heads, and their softmax
    assert 1024**2 < peaks["dense"] < peaks["reference"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"masks": "causal"}, TypeError, "masks must be a list or a mapping"),
        ({"masks": []}, ValueError, "masks must name at least one"),
        ({"masks": ["cusal"]}, ValueError, "did you mean 'causal'"),
        ({"masks": [3]}, TypeError, "masks must be names"),
        ({"masks": ["exit()"]}, ValueError, "'exit' in mask"),
        ({"lengths": [0]}, ValueError, "lengths must be between 1 and 16777216, got 0"),
        ({"lengths": [1.5]}, TypeError, r"lengths must be an integer, got 1\.5"),
        ({"lengths": []}, ValueError, "lengths must name at least one"),
        ({"engines": ["blockd"]}, ValueError, "did you mean 'blocked'"),
        ({"dtypes": ["int8"]}, ValueError, "dtypes must be one of float32, .*got 'int8'"),
        ({"passes": ["sideways"]}, ValueError, "passes must be one of forward, backward, both"),
        ({"num_heads": 4, "num_kv_heads": 3}, ValueError, "num_kv_heads must divide num_heads=4, got 3"),
        ({"repeats": 0}, ValueError, "repeats must be between 1 and 1048576, got 0"),
        ({"min_time": -1}, ValueError, "min_time must be between 0 and 3600, got -1"),
        ({"min_time": "1"}, TypeError, "min_time must be a number"),
        ({"threads": True}, TypeError, "threads must be an integer, got True"),
        ({"preset": "slow"}, ValueError, "preset must be one of quick, published"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads must be at least 1, got 0"),
        ({"memory": "no"}, TypeError, "memory must be True or False, got 'no'"),
    ],
)
def test_impossible_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        attention(**options)
