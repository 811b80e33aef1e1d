"""``gatework evaluate ar-slices`` as a user types it, on what ``gatework fit`` left and on foreign models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import gatework.hf
from gatework.cli import main
from gatework.data.tokenizer import load_tokenizer

RECIPE = {
    "task": "text",
    "model": {"hidden_size": 8, "mixers": ["base_conv", "attention"], "channel_mixer": "none"},
    "training": {"steps": 3, "batch_size": 4, "evaluations": 1},
    "trainer": {"accelerator": "cpu", "progress_bar": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, two trainings on it, of bytes and of trained tokens, and a model of Transformers."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "text").mkdir()
    for number in range(90):
        name = f"zq{number * 7919 % 97:02d}x{number}"
        words = f"let {name} be {number}; then {name} and {name} again.\n" * (1 + number % 3)
        (folder / "text" / f"{number}.txt").write_text(words)
    setting = {"corpus": str(folder / "text"), "length": 16, "num_test": 0}
    for run, tokens in (("bytes", {}), ("bpe", {"tokenizer": "bpe", "vocab_size": 270})):
        recipe = {**RECIPE, "setting": {**setting, **tokens}}
        (folder / f"{run}.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["fit", "--config", str(folder / f"{run}.yaml"), "--output", str(folder / run)]) == 0
    torch.manual_seed(1)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=270, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    load_tokenizer(folder / "bpe" / "model").pretrained().save_pretrained(folder / "gpt2")
    return folder


@pytest.mark.parametrize("run", ["bytes", "bpe"])
def test_a_training_is_scored_as_it_scored_itself(folder, run, capsys):
    path = folder / "scores.json"
    command = ["evaluate", "ar-slices", str(folder / run), str(folder / "text"), "--json", str(path)]
    assert main([*command, "--max-train-count", "1"]) == 0
    shown = capsys.readouterr().out
    record = json.loads(path.read_text())
    result = json.loads((folder / run / "result.json").read_text())
    assert record["model"]["loss"]["overall"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert record["model"]["bits_per_byte"] == pytest.approx(result["test"]["quality"], rel=1e-5)
    assert record["length"] == 16
    assert record["format"] == "gatework.ar-slices/1"
    assert record["gap"] is None
    assert f"{record['model']['loss']['ar_hits']:.4f}" in shown
    assert f"AR hits: {record['ar_share']:.2%} of them" in shown
    assert f"{record['train']['tokens']:,} tokens of the train split of {folder / 'text'}" in shown
    assert "at most once" in shown


def test_two_models_are_compared(folder, capsys):
    path = folder / "two.json"
    models = [str(folder / "gpt2"), str(folder / "text"), "--base", str(folder / "bpe")]
    options = ["--ar_share", "0.2", "--length", "12", "--packing", "documents", "--json", str(path)]
    assert main(["evaluate", "ar-slices", *models, *options]) == 0
    shown = capsys.readouterr().out
    record = json.loads(path.read_text())
    loss = {side: record[side]["loss"] for side in ("model", "base")}
    for part in ("overall", "ar_hits", "other"):
        assert f"{loss['model'][part] - loss['base'][part]:+.4f}" in shown
    assert record["gap"] == pytest.approx(loss["model"]["overall"] - loss["base"]["overall"])
    assert ("No gap: " in shown) == (record["gap"] <= 0)
    assert max(map(len, shown.splitlines()[5:])) <= 100


def test_what_fit_saves_loads_with_transformers(folder):
    assert gatework.hf  # registers the model
    model = AutoModelForCausalLM.from_pretrained(folder / "bpe" / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe" / "model")
    assert model.config.vocab_size == len(tokenizer) == 270
    text = "let zq05x7 be 7"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_prompt_is_continued_in_tokens(folder, capsys):
    command = ["predict", "--run", str(folder / "bpe"), "--prompt", "let zq", "--max_new_tokens", "5"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("let zq")
    tokenizer = load_tokenizer(folder / "bpe" / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "bpe" / "model")
    (ids,) = tokenizer.encode([b"let zq"])
    for _ in range(5):
        ids = [*ids, int(model(input_ids=torch.tensor([[*map(int, ids)]])).logits[0, -1].argmax())]
    assert text == "let zq" + tokenizer.decode([*map(int, ids[-5:])]) + "\n"


def test_without_a_kind_it_lists_them_and_is_light():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gatework", "evaluate"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ar-slices  the recall gap" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"gatework.cli", "jsonargparse"} <= imported, "the import log was not understood"
    assert not imported & {"torch", "transformers", "lightning", "numba"}


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "ar-slices", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "could recall from its context" in text
    assert "--max_train_count" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "model 'none' cannot be loaded"),
        (["TEXT", "TEXT"], "is a folder without config.json"),
        (["GPT2", "none"], "'none' does not exist"),
        (["GPT2", "TEXT", "--length", "17"], "length must be at most 16"),
        (["GPT2", "TEXT", "--split", "all"], "another text to count with train"),
        (["GPT2", "TEXT", "--ar_share", "0.1", "--max_train_count", "3"], "give one of them"),
        (["GPT2", "TEXT", "--dtype", "float8"], "dtype must be one of"),
        (["GPT2", "TEXT", "--batch_size", "many"], "batch_size"),
        (["GPT2", "TEXT", "--plugin", "no_such_plugin"], "no_such_plugin"),
        (["BYTES", "TEXT", "--base", "GPT2"], "have different tokenizers"),
        ([], "model"),
    ],
)
def test_mistakes_are_named_in_one_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = {"TEXT": folder / "text", "GPT2": folder / "gpt2", "BYTES": folder / "bytes"}
    words = [str(places.get(word, word)) for word in arguments]
    assert main(["evaluate", "ar-slices", *words]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("gatework: error: ")
    assert message in complaint
