"""``fit``, ``validate`` and ``predict`` as a user types them."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from gatework.cli import main

RECIPE = {
    "task": "recall",
    "setting": {
        "vocab_size": 40,
        "input_seq_len": 16,
        "num_kv_pairs": 3,
        "random_non_queries": False,
        "num_train": 96,
        "num_test": 20,
    },
    "model": {"hidden_size": 8, "mixers": ["base_conv", "attention"], "channel_mixer": "none"},
    "training": {"steps": 6, "batch_size": 16, "evaluations": 2},
    "trainer": {"accelerator": "cpu", "log_every": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--output", str(folder / "run")]) == 0
    return folder


def test_what_a_training_leaves(trained):
    run = trained / "run"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 6
    assert result["tokens"] == 6 * 16 * 16
    assert result["quality"]["name"] == "accuracy"
    assert 0 <= result["test"]["quality"] <= 1
    assert result["validation"]["loss"] != result["test"]["loss"]
    rows = (run / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,tokens,split,loss,quality,learning_rate"
    assert [row.split(",")[0] for row in rows[1:]] == ["2", "3", "4", "6", "6"]
    assert list(run.glob("tensorboard/events*"))
    assert (run / "model" / "config.json").is_file()
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert written["training"]["warmup"] == 0.1
    assert "plugin" not in written


def test_the_same_command_again_finds_it_finished(trained, capsys):
    before = (trained / "run" / "result.json").read_bytes()
    config = ["--config", str(trained / "tiny.yaml"), "--output", str(trained / "run")]
    assert main(["fit", *config]) == 0
    assert "finished training" in capsys.readouterr().err
    assert (trained / "run" / "result.json").read_bytes() == before
    assert main(["fit", *config, "--training.steps", "7"]) == 2
    assert "training.steps: 6 -> 7" in capsys.readouterr().err


def test_validate_prints_what_fit_has_found(trained, capsys):
    result = json.loads((trained / "run" / "result.json").read_text())
    for split in ("validation", "test"):
        file = trained / f"{split}.json"
        assert main(["validate", "--run", str(trained / "run"), "--split", split, "--json", str(file)]) == 0
        found = json.loads(file.read_text())
        assert {name: found[name] for name in ("loss", "quality", "slices")} == result[split]
        assert f"{result[split]['loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["model/model.safetensors", "checkpoints/last.ckpt"])
def test_weights_may_come_from_any_file(trained, capsys, weights):
    config = ["--config", str(trained / "tiny.yaml"), "--checkpoint", str(trained / "run" / weights)]
    assert main(["validate", *config, "--split", "test"]) == 0
    result = json.loads((trained / "run" / "result.json").read_text())
    assert f"{result['test']['loss']:.4f}" in capsys.readouterr().out


def test_predictions_agree_with_the_accuracy(trained):
    file = trained / "predictions.jsonl"
    assert main(["predict", "--run", str(trained / "run"), "--output", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 20
    assert len(rows[0]["inputs"]) == 16
    assert all(
        row["hits"] == [a == b for a, b in zip(row["labels"], row["predictions"], strict=True)]
        for row in rows
    )
    result = json.loads((trained / "run" / "result.json").read_text())
    assert sum(row["accuracy"] for row in rows) / 20 == pytest.approx(result["test"]["quality"])


def test_text_is_predicted_and_continued(tmp_path, capsys):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"document {number} says {number * number}. " * 20)
    recipe = {
        **RECIPE,
        "task": "text",
        "setting": {"corpus": str(tmp_path), "suffixes": [".txt"], "length": 32, "num_test": 5},
        "training": {"steps": 3, "batch_size": 4, "evaluations": 1},
    }
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(recipe))
    run = str(tmp_path / "run")
    assert main(["fit", "--config", str(tmp_path / "text.yaml"), "--output", run]) == 0
    assert main(["predict", "--run", run, "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    mean = sum(row["bits_per_byte"] for row in rows) / len(rows)
    assert mean == pytest.approx(result["test"]["quality"], rel=1e-5)
    capsys.readouterr()
    assert main(["predict", "--run", run, "--prompt", "document 1 says", "--max_new_tokens", "9"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("document 1 says")
    assert len(text) > len("document 1 says")


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("setting", {"corpus": {"class_path": "spy.Spy"}}),
        ("setting", {"corpus": "{class_path: spy.Spy}"}),
        ("model", {"mixers": '[{"class\\u005fpath": spy.Spy}]'}),
        ("setting", "{class_path: spy.Spy}"),
        ("callbacks", '[{"class_path": "spy.Spy"}]'),
        ("model", {"mixers": [{"class_path": "spy.Spy", "init_args": {}}]}),
        ("callbacks", [{"class_path": "spy.Spy"}]),
        ("training", {"class_path": "spy.Spy"}),
        ("plugin", ["spy"]),
    ],
)
def test_a_recipe_imports_nothing(tmp_path, monkeypatch, capsys, section, value):
    (tmp_path / "spy.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\nclass Spy: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump({**RECIPE, section: value}))
    assert main(["fit", "--config", str(tmp_path / "evil.yaml"), "--output", str(tmp_path / "run")]) == 2
    assert "gatework: error: " in capsys.readouterr().err
    assert not (tmp_path / "imported").exists()
    assert "spy" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "--task must say what to train for"),
        (["fit", "--task", "recal", "--output", "OUT"], "did you mean 'recall'"),
        (["fit", "--task", "text", "--training.epochs", "1", "--output", "OUT"], "set steps"),
        (["fit", "--task", "recall", "--trainer.strategy", "fsdp", "--output", "OUT"], "use 'ddp'"),
        (["fit", "--task", "recall", "--trainer.precision", "4"], "trainer.precision"),
        (["fit", "--task", "recall", "--model.hidden_sizes", "4", "--output", "OUT"], "mean 'hidden_size'"),
        (["validate"], "--run must name a training"),
        (["validate", "--run", "none"], "does not exist"),
        (["predict", "--run", "none", "--task", "recall"], "--run has a recipe of its own"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    assert main([word.replace("OUT", str(tmp_path / "run")) for word in arguments]) == 2
    assert message in capsys.readouterr().err
