"""``gatework list``: every mixer with its state, cost and source, from the registry alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gatework import registry
from gatework.cli import main
from gatework.registry import list_mixers, mixer_entry, register_mixer


def test_every_mixer_shows_its_state_cost_and_source(capsys):
    assert main(["list", "mixers"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("mixers (L: tokens read, d: channels")
    text = " ".join(" ".join(lines).split())
    for name in list_mixers():
        entry = mixer_entry(name)
        assert entry.state, name
        assert entry.cost, name
        expected = f"{name} {entry.summary} state {entry.state} | cost {entry.cost} | {entry.source}"
        assert expected in text
    assert max(map(len, [head, *lines])) <= 120
    assert [line.split()[0] for line in lines if line[2] != " "] == list_mixers()


def test_json_has_the_same(capsys):
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found["mixers"]] == list_mixers()
    assert found["mixers"][0].keys() == {"name", "summary", "source", "state", "cost"}
    assert found["mixers"][0]["cost"] == mixer_entry("attention").cost
    assert found["tasks"] == ["recall", "text"]
    assert main(["list", "tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"tasks": ["recall", "text"]}


def test_what_a_plugin_does_not_say_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(registry.mixers, "_MIXERS", dict(registry.mixers._MIXERS))
    register_mixer("mine", lambda dim: None)
    register_mixer("mine_too", lambda dim: None, summary="a mixer", state="d", source="a shelf")
    assert main(["list", "mixers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  mine" in lines
    (index,) = [index for index, line in enumerate(lines) if line.startswith("  mine_too")]
    assert lines[index + 1].strip() == "state d | a shelf"
    assert main(["list", "mixers", "--json"]) == 0
    records = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["mixers"]}
    assert records["mine"] == {"name": "mine", "summary": "", "source": "", "state": "", "cost": ""}


def test_listing_imports_no_torch():
    program = (
        "import sys; from gatework.cli import main; main(['list']); "
        "print(sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.bad_input
def test_another_kind_is_named(capsys):
    assert main(["list", "layers"]) == 2
    assert "'layers'" in capsys.readouterr().err


def test_models_are_listed_by_kind(capsys):
    assert main(["list", "models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [entry["name"] for entry in models] == registry.list_models()
    (entry,) = [entry for entry in models if entry["name"] == "zoology_attention_125m"]
    assert (entry["kind"], entry["family"], entry["paper"]) == ("language", "zoology", "arXiv:2312.04927")
    assert entry["parameters"] == 124_869_888
    assert main(["list", "models", "--kind=vision"]) == 0
    assert "zoology" not in capsys.readouterr().out
    assert main(["list", "--kind=language"]) == 0
    assert "mixers" not in capsys.readouterr().out.splitlines()[0]


@pytest.mark.bad_input
def test_a_kind_is_of_models(capsys):
    assert main(["list", "tasks", "--kind=vision"]) == 2
    assert "--kind is of models, and this lists tasks" in capsys.readouterr().err


def test_a_reader_may_have_had_enough():
    program = "import sys; from gatework.cli import main; sys.exit(main(['list']))"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **streams) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait(60) == 0
