"""`gatework convert` writes weights of any layout in ours and says what became of them, or why not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from gatework.checkpoints import load_checkpoint
from gatework.cli import main
from gatework.registry import models
from gatework.registry.models import register_model
from tests.toy_model import WRITERS, Toy


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The toy model by name, for one test."""
    monkeypatch.setattr(models, "_OWN_MODELS", {})
    register_model("toy", Toy, kind="vision")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *words):
    """The one line that a wrong call answers with."""
    assert main(["convert", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gatework: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("kind", WRITERS)
def test_three_layouts_become_ours(folder, capsys, kind):
    trained = Toy()
    state = trained.state_dict()
    torch.save({"model": WRITERS[kind](state)}, "in.pth")
    assert main(["convert", "toy", "in.pth", "out.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert f"in.pth: layout {kind!r} of Toy" in printed
    written = load_file("out.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    load_checkpoint(Toy(), folder / "out.safetensors", layout="gatework")
    assert "mapped (" in printed
    if kind == "tensorflow":
        row = next(line for line in printed.splitlines() if "blocks.1.kv.bias" in line)
        assert row.split(maxsplit=2) == [
            "blocks.1.kv.bias",
            "16",
            "<- block_01/attention/k/bias, block_01/attention/v/bias",
        ]
        assert "ignored (1)\n  global_step  scalar\n" in printed
        assert "the model's own (1)\n  stem_norm.num_batches_tracked  scalar\n" in printed


def test_tables_and_head_only_where_asked(folder, capsys):
    save_file(WRITERS["timm"](Toy(window=5, num_classes=7).state_dict()), "in.safetensors")
    call = ["toy", "in.safetensors", "out.safetensors"]
    message = refused(capsys, *call)
    assert "resize_positions=True resizes them" in message
    assert "drop_head=True loads all but the head" in message
    assert not (folder / "out.safetensors").exists()
    assert main(["convert", *call, "--resize_positions", "--drop_head"]) == 0
    printed = capsys.readouterr().out
    assert "resized (2)\n  blocks.0.table  2x9x9 -> 2x5x5\n" in printed
    assert "left out (2)\n  head.weight\n  head.bias\n" in printed
    written = load_file("out.safetensors")
    assert written.keys() == {name for name in Toy().state_dict() if not name.startswith("head")}
    load_checkpoint(Toy(), folder / "out.safetensors", drop_head=True)
    assert main(["convert", *call, "--options.window", "5", "--options.num_classes", "7", "--force"]) == 0


def test_what_exists_stays_without_force(folder, capsys):
    save_file(Toy().state_dict(), "in.safetensors")
    (folder / "out.safetensors").write_bytes(b"precious")
    call = ["toy", "in.safetensors", "out.safetensors"]
    assert "output 'out.safetensors' exists; --force overwrites it" in refused(capsys, *call)
    assert (folder / "out.safetensors").read_bytes() == b"precious"
    # Nor is it harmed by a conversion that fails.
    assert "is not a file" in refused(capsys, "toy", "nowhere.pt", "out.safetensors", "--force")
    assert (folder / "out.safetensors").read_bytes() == b"precious"
    assert main(["convert", *call, "--force"]) == 0
    assert load_file("out.safetensors").keys() == Toy().state_dict().keys()
    assert sorted(path.name for path in folder.iterdir()) == ["in.safetensors", "out.safetensors"]


def test_a_layout_or_one_of_several_sets_is_named(folder, capsys):
    state = Toy().state_dict()
    torch.save({"model": state, "model_ema": WRITERS["timm"](state)}, "in.pth")
    assert "choose with entry='model' or entry='model_ema'" in refused(
        capsys, "toy", "in.pth", "a.safetensors"
    )
    call = ["toy", "in.pth", "a.safetensors", "--entry", "model_ema"]
    assert "layout 'x' is none of Toy" in refused(capsys, *call, "--layout", "x")
    assert main(["convert", *call, "--layout", "timm"]) == 0


RECIPE = """
task: recall
setting: {input_seq_len: 64, num_kv_pairs: 4}
model: {hidden_size: 8, num_hidden_layers: 1, mixers: [{name: attention, num_heads: 2}]}
"""


def test_the_model_of_a_recipe_or_a_training(folder, capsys):
    from gatework.training.recipe import read_recipe
    from gatework.training.trained import make_task

    (folder / "run").mkdir()
    for path in (folder / "run" / "recipe.yaml", folder / "mine.yaml"):
        path.write_text(RECIPE)
    recipe = read_recipe(folder / "mine.yaml")
    model = make_task(recipe).build_model(recipe.model)
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, "in.pt")
    for index, name in enumerate(("run", "mine.yaml")):
        assert main(["convert", name, "in.pt", f"{index}.safetensors"]) == 0
        written = load_file(f"{index}.safetensors")
        assert written.keys() == model.state_dict().keys() - {"lm_head.weight"}  # tied: stored once
        load_checkpoint(model, folder / f"{index}.safetensors")
    capsys.readouterr()
    assert "--options is for a model that is named" in refused(
        capsys, "run", "in.pt", "b.safetensors", "--options.x", "1"
    )


@pytest.mark.bad_input
def test_wrong_calls(folder, capsys):
    save_file(Toy().state_dict(), "in.safetensors")
    (folder / "empty").mkdir()
    assert "did you mean 'toy'" in refused(capsys, "toi", "in.safetensors", "a.safetensors")
    assert "must be a .safetensors file, got 'a.pt'" in refused(capsys, "toy", "in.safetensors", "a.pt")
    assert "recipe.yaml does not exist" in refused(capsys, "empty", "in.safetensors", "a.safetensors")
    assert "nowhere.yaml does not exist" in refused(capsys, "nowhere.yaml", "in.safetensors", "a.safetensors")
    assert "depht" in refused(capsys, "toy", "in.safetensors", "a.safetensors", "--options.depht", "3")
    assert "a directory that exists" in refused(capsys, "toy", "in.safetensors", "nowhere/a.safetensors")
    (folder / "bad.safetensors").write_bytes(b"no")
    assert "cannot be read safely" in refused(capsys, "toy", "bad.safetensors", "a.safetensors")
    assert "is not a file" in refused(capsys, "toy", "empty", "a.safetensors")


def test_help_imports_no_pytorch():
    code = "import sys; from gatework.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
