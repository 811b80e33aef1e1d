"""``gatework bench gna``: help, the published tables, a case of one's own, and mistakes in one line."""

from __future__ import annotations

import json

import pytest

from gatework.bench.gna.kernels import KERNELS
from gatework.bench.gna.plan import PRESETS
from gatework.bench.gna.search import TILINGS
from gatework.cli import main

TINY = ["bench", "gna", "--grid=[16,16]", "--window=[8,8]", "--q-tile=4", "--kv_tile=[4,4]"]


def test_help_explains_and_gives_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "gna", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert "the simulator of arXiv:2504.16922" in text
    assert "gatework bench gna --grid [30,48,80] --window [18,24,24] --kernel blackwell --search" in text
    assert "--q_tile Q_TILE" in text
    for known in (*KERNELS, *TILINGS, *PRESETS):
        assert known in text


def test_the_published_tables_are_what_no_option_means(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gna"]) == 0
    shown = capsys.readouterr()
    assert "All 21 end-to-end speed-ups" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    (folder,) = (tmp_path / "runs").glob("bench-gna-*")
    assert shown.err == f"page: runs/{folder.name}/report.html\n"
    assert {path.name for path in folder.iterdir()} >= {"report.html", "results.csv", "results.json"}
    assert main(["bench", "gna", "--preset=published", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["preset"] == "published"
    assert found["rows"] == json.loads((folder / "results.json").read_text())["rows"]
    assert found["command"] == "gatework bench gna --preset=published --json"


def test_a_case_of_ones_own(tmp_path, capsys):
    output = f"--output={tmp_path / 'out'}"
    options = ["--stride=[[1,1],[8,8]]", "--attention_share=0.5", "--sparse-steps=0.5", output]
    assert main([*TINY, *options]) == 0
    shown = capsys.readouterr().out
    assert "grid 16x16, window 8x8" in shown
    assert "Of the ideal 4.00×, stride 8x8 gains 4.00× with tiles 4x4 / 4x4, perfectly block-sparse." in (
        " ".join(shown.split())
    )
    assert main([*TINY, *options, "--search", "--tiling=dynamic", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["search"], found["tiling"]) == (True, "dynamic")
    assert found["rows"][0]["end_to_end_partial"] is not None


def test_options_may_stand_in_a_file(tmp_path, capsys):
    config = tmp_path / "gna.yaml"
    config.write_text("grid: [12, 20]\nwindow: [-1, 5]\nis_causal: [false, true]\nq_tile: 4\nkv_tile: 4\n")
    assert main(["bench", "gna", f"--config={config}", f"--output={tmp_path / 'out'}"]) == 0
    assert "grid 12x20, window 12x5, causal on axis 1" in capsys.readouterr().out


def test_whole_axes_may_be_given_bare(tmp_path, capsys):
    command = ["bench", "gna", "--grid", "12", "--window", "-1", "--q-tile", "4", "--kv-tile", "4"]
    assert main([*command, f"--output={tmp_path}"]) == 0
    assert "window 12" in capsys.readouterr().out


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid=[16,16]"], "window must be given with a grid"),
        (["--window=4"], "window: these need a grid"),
        ([*TINY[2:], "--stride=9"], "stride must be at most the window 8, got 9"),
        ([*TINY[2:], "--stride=[1,1,1]"], "stride must be one number or 2"),
        ([*TINY[2:], "--dilation=3"], "window * dilation must fit the axis of 16"),
        ([*TINY[2:], "--kernel=flex"], "give q_tile and kv_tile together"),
        ([*TINY[2:], "--attention-share=7"], "attention_share must be between 0 and 1"),
        ([*TINY[2:], "--preset=published"], "preset must be left out"),
        ([*TINY[2:], "--tiling=none"], "tiling must be one of static, dynamic"),
        (["--grid=[a]", "--window=4"], "grid"),
        (["--grids=4"], "grids"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "gna", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatework: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [*tmp_path.iterdir()] == []
