"""A run of the simulator: its options, its rows in every form, and what it says of them."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pandas as pd
import pytest

from gatework.bench.gna import PUBLISHED, GnaBench, gna
from gatework.bench.gna.rows import COLUMNS, REASONS
from gatework.files import FileError

OWN = {"grid": (64, 64), "window": (13, 16), "q_tile": 8, "kv_tile": 8}


@pytest.fixture(scope="module")
def published() -> GnaBench:
    return gna()


def test_json_and_csv_hold_every_row(tmp_path):
    bench = gna(**OWN, search=True, attention_share=0.5, is_causal=(True, False), output=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")} == {
        "report.html",
        "results.csv",
        "results.json",
    }
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["rows"] == bench.rows
    assert stored == bench.to_json()
    assert (stored["schema"], stored["kind"]) == ("gatework.bench/1", "gna")

    text = (tmp_path / "out" / "results.csv").read_text()
    frame = pd.read_csv(io.StringIO(text))
    assert [*frame.columns] == [*COLUMNS]
    assert len(frame) == len(bench.rows)
    for (_, line), row in zip(frame.iterrows(), bench.rows, strict=True):
        assert line["window"] == "x".join(map(str, row["window"]))
        assert line["is_causal"] == "1x0"
        assert line["speedup"] == pytest.approx(row["speedup"])
        assert line["is_perfect"] == row["is_perfect"]
        assert math.isnan(line["paper_measured"])


def test_the_same_directory_is_written_again_and_foreign_ones_are_not(tmp_path):
    output = tmp_path / "deep" / "out"
    gna(**OWN, output=output)
    before = (output / "results.json").read_text()
    gna(**OWN, stride=2, output=output)
    assert (output / "results.json").read_text() != before
    (output / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"holds other files \(notes.txt\)"):
        gna(**OWN, output=output)
    other = tmp_path / "attention"
    other.mkdir()
    (other / "results.json").write_text('{"kind": "attention"}')
    with pytest.raises(FileError, match=r"holds other files \(results.json\)"):
        gna(**OWN, output=other)
    assert (other / "results.json").read_text() == '{"kind": "attention"}'
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="output must be a directory, got the file"):
        gna(**OWN, output=tmp_path / "file")


def test_nothing_is_stored_without_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(gna(**OWN).rows) == 1
    assert [*tmp_path.iterdir()] == []


def test_rows_say_why_they_are_there(published):
    assert {row["why"] for row in published.rows} == {"published"}
    searched = gna(**OWN, search=True)
    assert [(row["why"], row["stride"]) for row in searched.rows] == [
        ("asked", [1, 1]),
        ("front", [1, 16]),
        ("nearby", [16, 16]),
        ("nearby", [8, 16]),
    ]
    assert {row["why"] for row in searched.rows} <= REASONS.keys()
    perfect = gna(grid=(64, 64), window=16, q_tile=8, kv_tile=8, search=True)
    assert [row["why"] for row in perfect.rows if row["is_perfect"]] == ["perfect"]


def test_without_tiles_those_of_kernels_are_tried():
    bench = gna(grid=(32, 32), window=16, stride=[[1, 1], [8, 16], [1, 1]])
    assert len(bench.rows) == 8 * 2
    assert {row["kernel"] for row in bench.rows} == {"blackwell", "hopper", "flex"}
    hopper = gna(grid=(32, 32), window=16, kernel="hopper")
    assert [row["q_tile"] for row in hopper.rows] == [[16, 8]]


def test_the_search_goes_by_the_tiling():
    """Windows that begin beside a key tile are perfect only if tiles are cut from them."""
    options = {"grid": 60, "window": 12, "q_tile": 4, "kv_tile": 6, "search": True}
    static, dynamic = gna(**options), gna(**options, tiling="dynamic")
    assert [row["stride"] for row in dynamic.rows if row["why"] == "perfect"] == [[4]]
    assert [row["stride"] for row in static.rows if row["why"] == "perfect"] == [[12]]
    assert "--tiling=dynamic" in dynamic.command


def test_end_to_end_needs_a_share(published):
    (row,) = gna(**OWN).rows
    assert row["end_to_end"] is row["end_to_end_partial"] is None
    (row,) = gna(**OWN, attention_share=0.5).rows
    assert row["end_to_end"] == pytest.approx(1 / (0.5 + 0.5 / row["speedup"]))
    assert row["end_to_end_partial"] is None
    (row,) = gna(**OWN, attention_share=0.5, sparse_steps=0.5).rows
    assert row["end_to_end_partial"] == pytest.approx(1 / (0.75 + 0.25 / row["speedup"]))
    assert all(row["end_to_end"] > row["end_to_end_partial"] for row in published.rows)


def test_the_table_has_every_row_and_fits(published):
    lines = published.table().splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if "/" in line and line[:1].isdigit()]
    assert len(rows) == 21
    assert "84/512    6.10×   59.5 %" in lines[3]
    assert sum(line.endswith("perfect") for line in rows) == 5
    text = " ".join(lines)
    assert "All 21 end-to-end speed-ups that the paper's simulator gives are reproduced: within 0.015" in text
    for case in PUBLISHED:
        assert case.name in text


def test_the_table_says_what_is_special():
    text = gna(grid=(32, 32), window=-1, is_causal=(False, True), q_tile=4, kv_tile=4).table()
    assert "grid 32x32, window 32x32, causal on axis 1" in text
    assert "ideal 1.00×, 1.94× by allowed pairs" in text
    assert "dilation 2x1" in gna(**{**OWN, "dilation": (2, 1)}).table()
    assert "paper" not in text
    assert "e2e" not in text


def test_the_answer_names_the_best_tiles_of_each_kernel():
    text = " ".join(
        gna(grid=(30, 48, 80), window=(18, 24, 24), stride=(2, 8, 8), search=True).table().split()
    )
    assert "10.00× with tiles 4x8x8 / 2x8x8 (blackwell), 11.11× with tiles 2x8x8 / 2x8x8 (hopper)" in text
    assert "(hopper), perfectly block-sparse" in text
    assert "With tiles 8x4x8 / 2x8x8 (blackwell) the smallest perfectly block-sparse stride is 16x8x8" in text
    near = gna(**OWN, search=True).table()
    assert "window 16x16 has one, 16x16" in " ".join(near.split())


def test_its_command_does_the_same():
    bench = gna(**OWN, stride=[[1, 2], (2, 1)], is_causal=False, search=True)
    assert "'--grid=[64,64]' '--window=[13,16]' '--stride=[[1,2],[2,1]]'" in bench.command
    assert "--q-tile=8" in bench.command
    assert "--is-causal" not in bench.command
    assert bench.command.endswith("--search")


def test_long_axes_are_simulated_though_not_drawn(tmp_path):
    bench = gna(grid=1 << 18, window=1 << 12, q_tile=64, kv_tile=64, output=tmp_path)
    assert bench.rows[0]["flattened_speedup"] == bench.rows[0]["speedup"]
    assert '"picture":null' in Path(tmp_path, "report.html").read_text()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid": (4, 4)}, ValueError, "window must be given with a grid"),
        ({"window": 4, "stride": 2}, ValueError, "window, stride: these need a grid"),
        ({"preset": "paper"}, ValueError, "preset must be one of published, got 'paper'"),
        ({**OWN, "preset": "published"}, ValueError, "preset must be left out where a grid is given"),
        ({"grid": 8, "window": 4, "q_tile": 2}, ValueError, "give q_tile and kv_tile together"),
        ({**OWN, "kernel": "hopper"}, ValueError, "give q_tile and kv_tile together"),
        ({**OWN, "sparse_steps": 0.5}, ValueError, "sparse_steps needs attention_share"),
        ({**OWN, "attention_share": 2}, ValueError, "attention_share must be between 0 and 1, got 2"),
        ({**OWN, "attention_share": "all"}, TypeError, "attention_share must be a number, got 'all'"),
        ({**OWN, "stride": [[1, 1], [1]]}, ValueError, "stride must be one number or 2"),
        ({**OWN, "stride": []}, ValueError, "stride must be one number or 2"),
        ({**OWN, "tiling": "flat"}, ValueError, "tiling must be one of static, dynamic"),
        ({"grid": 2.5, "window": 1}, TypeError, "grid must be integers in one row, got 2.5"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        gna(**options)
