"""Values of options: one rule on the command line and in files, types, both spellings, once each."""

from __future__ import annotations

import importlib
import json

import pytest

from gatework.cli import COMMANDS, main
from gatework.cli.parser import Parser, spelled
from gatework.cli.plain_values import OptionError

FIT = ("fit", "--task=recall")
SETTING = [
    "--setting.input_seq_len=16",
    "--setting.num_kv_pairs=2",
    "--setting.vocab_size=32",
    "--setting.num_train=32",
    "--setting.num_test=8",
]


def parsed(command, *words):
    """The values of a command's options."""
    words = spelled(words)
    module = importlib.import_module(COMMANDS[command][1])
    parser = Parser(prog=command)
    module.add_arguments(parser, words)
    return parser.parse_args(words).as_dict()


def value_of(option, *words):
    found = parsed(*words)
    for part in option.split("."):
        found = found[part]
    return found


def same(one, other):
    return type(one) is type(other) and one == other


ANYTHING = {
    "1e-6": 1e-6,
    "010": 10,
    "yes": "yes",
    "1_000": "1_000",
    "2024-01-01": "2024-01-01",
    "12:30:00": "12:30:00",
    "null": None,
    "": None,
    "true": True,
    "'1e-6'": "1e-6",
    "[1, yes, '2']": [1, "yes", "2"],
    "{a: {b: '1'}}": {"a": {"b": "1"}},
}


@pytest.mark.parametrize("text", ANYTHING)
def test_values_are_the_same_on_the_command_line_and_in_files(text, tmp_path):
    expected = ANYTHING[text]
    assert same(value_of("model.x", *FIT, "--model.x", text), expected)
    assert same(value_of("model.x", *FIT, f"--model={{x: {text}}}"), expected)
    config = tmp_path / "recipe.yaml"
    config.write_text(f"model:\n  x: {text}\n")
    assert same(value_of("model.x", *FIT, f"--config={config}"), expected)


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", ".5", 0.5),
        ("learning_rate", "010", 10.0),
        ("seed", "1000", 1000),
        ("seed", "0x10", 16),
        ("output", "1e3", "1e3"),
        ("output", "010", "010"),
        ("output", "null", "null"),
        ("output", "[a]", "[a]"),
        ("output", "{a: b}", "{a: b}"),
        ("trainer.wandb", "True", True),
        ("trainer.ema_decay", "null", None),
        ("trainer.ema_decay", "1e-1", 0.1),
        ("trainer.precision", "64-true", "64-true"),
    ],
)
def test_an_option_has_the_type_that_it_declares(option, text, value):
    assert same(value_of(option, *FIT, f"--{option}", text), value)


@pytest.mark.parametrize(
    ("option", "words", "value"),
    [
        ("widths", ["compare", "recall", "--widths=[8, 16]"], [8, 16]),
        ("mixers", ["compare", "recall", "--mixers=all"], "all"),
        ("mixers", ["compare", "recall", "--mixers={my-a: [attention]}"], {"my-a": ["attention"]}),
        ("mixers", ["compare", "recall", "--mixers.my-a=[attention]"], {"my-a": ["attention"]}),
        (
            "recall",
            ["compare", "text", "--recall.training.batch-size=3", "--recall.training.steps=4"],
            {"training": {"batch_size": 3, "steps": 4}},
        ),
        ("attention.max_memory", ["bench", "attention", "--max-memory=4G"], "4G"),
        ("attention.masks", ["bench", "attention", "--masks.a=causal"], {"a": "causal"}),
        ("gna.stride", ["bench", "gna", "--stride=[[1,1],[1,8]]"], [[1, 1], [1, 8]]),
        ("ar-slices.max_train_count", ["evaluate", "ar-slices", "m", "--max-train-count=3"], 3),
        ("options", ["convert", "m", "s", "o", "--options.num-classes=3"], {"num_classes": 3}),
        ("training.batch_size", [*FIT, "--training.batch-size=3"], 3),
        ("trainer.log_every", [*FIT, "--trainer.log-every", "3"], 3),
        ("model.hidden_size", [*FIT, "--model.hidden-size", "3"], 3),
        ("max_new_tokens", ["predict", "--task=text", "--max-new-tokens=3"], 3),
    ],
)
def test_every_command_reads_its_options_so_under_both_spellings(option, words, value):
    assert same(value_of(option, *words), value)


def test_files_may_use_both_spellings(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("learning-rate: 1e-3\ntraining: {batch-size: 4}\nmodel: {hidden-size: 8}\n")
    found = parsed(*FIT, f"--config={config}")
    assert found["learning_rate"] == 1e-3
    assert found["training"]["batch_size"] == 4
    assert found["model"] == {"hidden_size": 8}
    config.write_text("mixers: {my-own: [attention]}\nsettings: {a-b: {vocab_size: 32}}\n")
    found = parsed("compare", "recall", f"--config={config}")
    assert [*found["mixers"]] == ["my-own"]  # a label, and no option
    assert [*found["settings"]] == ["a-b"]


def test_parts_of_a_mapping_are_put_into_what_a_file_says(tmp_path):
    config = tmp_path / "recipe.yaml"
    config.write_text("model: {a: {b: 1, c: 2}, d: 3}\n")
    words = [*FIT, "--model.a.b", "'1'", f"--config={config}", "--model.e", "4"]
    assert parsed(*words)["model"] == {"a": {"b": "1", "c": 2}, "d": 3, "e": 4}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed=1e3"], "--seed must be an integer, got '1e3'; written 1000, it is one"),
        (["--seed=1.5"], "--seed must be an integer, got '1.5'"),
        (["--seed=true"], "--seed must be an integer, got 'true'"),
        (["--seed=1_000"], "--seed must be an integer, got '1_000'"),
        (["--seed=12:30"], "--seed must be an integer, got '12:30'"),
        (["--seed="], "--seed must be an integer"),
        (["--learning-rate=yes"], "--learning_rate must be a number, got 'yes'"),
        (["--learning_rate=true"], "--learning_rate must be a number, got 'true'"),
        (["--learning_rate='1'"], "which in quotes is a text"),
        (["--learning_rate=[1]"], "--learning_rate must be a number, got [1]"),
        (["--trainer.wandb=yes"], "--trainer.wandb must be true or false, got 'yes'"),
        (["--trainer.wandb=1"], "--trainer.wandb must be true or false, got '1'"),
        (["--trainer.precision=64"], "--trainer.precision must be one of 32-true"),
        (["--callbacks=3"], "--callbacks must be a list"),
        (["--setting=3"], "--setting must be a mapping, got '3'"),
        (["--model.x={a: 1, a: 2}"], "--model.x must be valid YAML, got '{a: 1, a: 2}': line 1: key 'a'"),
        (["--model.x=*.txt"], "needs quotes of its own"),
        (["--seed=1", "--seed", "2"], "--seed is given twice"),
        (["--model.a=1", "--model.a=2"], "--model.a is given twice"),
        (["--model.a-b=1", "--model.a_b=2"], "--model.a_b is given twice"),
        (["--training.batch-size=1", "--training.batch_size=2"], "--training.batch_size is given twice"),
        (["--model={a: 1}", "--model.a=2"], "--model and --model.a give the same option"),
        (["--sed=1"], "--sed is no option; did you mean '--seed'"),
        (["--see=1"], "--see is no option; did you mean '--seed'"),
        (["--training.stepz=1"], "did you mean '--training.steps'"),
        (["--model.=1"], "--model. must be followed by"),
        (["--model.x"], "--model.x must have a value"),
    ],
)
def test_what_an_option_cannot_be_is_named(words, message):
    with pytest.raises(OptionError) as caught:
        parsed(*FIT, *words)
    assert message in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "line 2: key 'seed' is there twice"),
        ("model:\n  a: 1\n  a: 2\n", "line 3: key 'a' is there twice"),
        ("learning-rate: 1\nlearning_rate: 2\n", "has learning_rate twice"),
        ("model: {a-b: 1, a_b: 2}\n", "model.a_b is given twice"),
        ("seed: '1'\n", "--seed must be an integer, got '1'"),
        ("seed: 1.0\n", "--seed must be an integer, got 1.0; written 1, it is one"),
        ("seed: true\n", "--seed must be an integer, got true"),
        ("task: 010\n", "--task must be text, got 10; in quotes it is a text"),
        ("training: {stepz: 1}\n", "'training.stepz', which is none; did you mean '--training.steps'"),
        ("sed: 1\n", "did you mean '--seed'"),
        ("training: 3\n", "training must be a mapping"),
        ("model: !!python/name:os.system\n", "is not allowed"),
        ("<<: {seed: 1}\n", "merges nothing"),
        ("- 1\n", "must hold a mapping"),
        ("plugin: [os]\n", "plugin runs code"),
    ],
)
def test_mistakes_in_a_file_are_one_line(text, message, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text(text)
    assert main(["fit", f"--config={config}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_recipe_that_is_written_says_the_same(tmp_path):
    output = tmp_path / "run"
    words = ["--training.steps=1", "--training.evaluations=1", "--training.batch-size=4"]
    words += ["--model.hidden-size=8", "--model.norm_eps", "1e-6", "--trainer.accelerator=cpu"]
    assert main(["fit", "--task=recall", *SETTING, *words, f"--output={output}"]) == 0
    from gatework.training.recipe import read_recipe

    recipe = read_recipe(output / "recipe.yaml")
    assert same(recipe.model, {"hidden_size": 8, "norm_eps": 1e-6})
    assert same(recipe.model["norm_eps"], 1e-6)
    assert json.loads((output / "model" / "config.json").read_text())["norm_eps"] == 1e-6
    again = ["fit", f"--config={output / 'recipe.yaml'}", f"--output={output}"]
    assert main(again) == 0  # the same recipe, and nothing to do


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.hidden_size=3.5"], "--model.hidden_size must be an integer, got 3.5"),
        (["--model.hidden-size=abc"], "--model.hidden_size must be an integer, got 'abc'"),
        (["--model.norm_eps=yes"], "--model.norm_eps must be a number, got 'yes'"),
        (["--model.layers=2"], "model has no option 'layers'; did you mean 'num_hidden_layers'"),
        (["--model.mixers=3"], "--model.mixers must be a list"),
        (
            ["--model.mixers=[{name: attention, num_heads: 1.5}]"],
            "--model.mixers[0].num_heads must be an integer, got 1.5",
        ),
        (["--setting.num_passes=1.5"], "--setting.num_passes must be an integer, got 1.5"),
        (["--setting.mode=x"], "--setting.mode must be one of"),
        (["--setting.lenght=3"], "has no option 'lenght'"),
        (["--training.warmup=2"], "--training.warmup must be between 0 and 1"),
        (["--trainer.devices=0"], "--trainer.devices must be at least 1"),
        (["--seed=-1"], "--seed must be at least 0"),
    ],
)
def test_fit_refuses_before_it_makes_a_directory(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--task=recall", *SETTING, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--setting.num_passes=1.5"], "--setting.num_passes must be an integer"),
        (["--mixers={a: [{name: attention, num_heads: x}]}"], "mixers[0].num_heads must be an integer"),
        (["--mixers={a: {layers: [attention], learning_rates: [x]}}"], "learning_rates of mixer 'a'"),
        (["--mixers={a: {layers: [attention], model: {norm_eps: x}}}"], "model.norm_eps must be a number"),
        (["--training.steps=1.5"], "error: --training.steps must be an integer"),
        (["--model.norm_eps=x"], "--model.norm_eps must be a number"),
        (["--widths=[true]"], "--widths[0] must be an integer, got true"),
    ],
)
def test_compare_refuses_before_it_makes_a_directory(words, message, tmp_path, capsys, monkeypatch):
    from gatework.study.executor import LocalExecutor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalExecutor, "start", lambda executor, number: None)
    others = ["--mixers=[attention]", "--widths=[8]"]
    others = [word for word in others if word.split("=")[0] != words[0].split("=")[0]]
    assert main(["compare", "recall", *SETTING, *others, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.bad_input
def test_an_error_of_a_companion_names_it(tmp_path, capsys, monkeypatch):
    from gatework.study.executor import LocalExecutor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalExecutor, "start", lambda executor, number: None)
    text = ["compare", "text", "--setting.max_bytes=300000", "--mixers=[attention]", "--widths=[8]"]
    assert main([*text, "--training.steps=8", "--recall.training.steps=x"]) == 2
    assert "--recall.training.steps must be an integer, got 'x'" in capsys.readouterr().err
