"""``gatework bench``: kinds, help, one benchmark end to end, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gatework.bench.attention.families import FAMILIES
from gatework.cli import bench, main
from gatework.ops.attention import ENGINES
from gatework.ops.attention.options import Engine

TINY = [
    "--lengths=[16,32]",
    "--head-dims=[8]",
    "--num-heads=2",
    "--engines=[dense]",
    "--repeats=1",
    "--min-time=0",
    "--memory=false",
]


def test_without_a_kind_it_lists_them(capsys):
    assert main(["bench"]) == 0
    assert "attention  attention under masks" in capsys.readouterr().out


def test_listing_kinds_is_light():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gatework", "bench"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"gatework.cli", "jsonargparse"} <= imported, "the import log was not understood"
    assert not imported & {"torch", "plotly", "pandas", "numba", "lightning"}


def test_help_explains_and_names_the_families(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "attention", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    assert "checked against the definition in float64" in text
    assert "SlidingWindow(N // 16, 0)" in text
    assert tuple(FAMILIES) == bench.FAMILIES
    assert "neighborhood" in text


def test_it_measures_stores_and_shows(tmp_path, capsys):
    command = ["bench", "attention", *TINY, "--masks=[causal]", "--mask", "SlidingWindow(N // 4, 1)"]
    assert main([*command, f"--output={tmp_path / 'bench'}"]) == 0
    shown = capsys.readouterr()
    assert "SlidingWindow(N // 4, 1)" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 100
    assert "[4/4] measured SlidingWindow(N // 4, 1), 32, 8, float32, forward, dense" in shown.err
    assert shown.err.endswith(f"page: {tmp_path / 'bench'}/report.html\n")
    assert {path.name for path in (tmp_path / "bench").iterdir()} >= {
        "bench.json",
        "cells",
        "report.html",
        "results.csv",
        "results.json",
    }
    assert main([*command, f"--output={tmp_path / 'bench'}", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "measured" not in shown.err  # nothing was measured anew
    assert found["schema"] == "gatework.bench/1"
    assert len(found["cells"]) == 4
    assert found["cells"] == json.loads((tmp_path / "bench" / "results.json").read_text())["cells"]


def test_the_default_directory_depends_on_the_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for lengths in ("[8]", "[12]", "[8]"):
        assert main(["bench", "attention", *TINY[1:], f"--lengths={lengths}", "--mask=Causal()"]) == 0
    assert len([*(tmp_path / "runs").glob("bench-attention-*")]) == 2
    assert capsys.readouterr().err.count("measured") == 2


def test_a_wrong_engine_fails_the_command(tmp_path, monkeypatch, capsys):
    right = ENGINES["reference"]
    broken = Engine(lambda q, k, v, options: (2 * right.run(q, k, v, options)[0], None))
    monkeypatch.setitem(ENGINES, "dense", broken)
    assert main(["bench", "attention", *TINY, "--mask=Causal()", f"--output={tmp_path}"]) == 1
    assert "WRONG: output is off by" in capsys.readouterr().out


def test_options_may_stand_in_a_file(tmp_path, capsys):
    config = tmp_path / "bench.yaml"
    config.write_text("masks: {mine: 'Causal() & SlidingWindow(4, 0)'}\nlengths: [8]\nmax_memory: 2G\n")
    output = tmp_path / "out"
    arguments = ["bench", "attention", *TINY[1:], f"--config={config}", f"--output={output}"]
    assert main(arguments) == 0
    assert "mine = Causal() & SlidingWindow(4, 0)" in capsys.readouterr().out
    assert json.loads((output / "bench.json").read_text())["options"]["max_memory"] == 2 * 2**30


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "atention"], "atention"),
        (["bench", "attention", "--masks=[cusal]"], "did you mean 'causal'"),
        (["bench", "attention", "--mask", "__import__('os').getcwd()"], "is not allowed"),
        (["bench", "attention", "--mask", "open('x')"], "'open' in mask"),
        (["bench", "attention", "--engines=[dens]"], "did you mean 'dense'"),
        (["bench", "attention", "--lengths=[-4]"], "lengths must be between 1 and"),
        (["bench", "attention", "--max-memory=lots"], "max_memory must be a size"),
        (["bench", "attention", "--dtypes=[float8]"], "dtypes must be one of"),
        (["bench", "attention", "--preset=slow"], "preset must be one of"),
        (["bench", "attention", "--lenghts=[4]"], "lenghts"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gatework: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 * 2**30), ("1.5 GiB", 3 * 2**29), ("500", 500), ("64kb", 65536), (7, 7), (None, None)],
)
def test_sizes_are_read(text, size):
    assert bench.read_size(text) == size
