"""The recipes of Zoology's language models in small: one process, and two with DDP and with FSDP."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gatework.cli import main
from gatework.models.language.decoder import DecoderBlock, GateworkConfig, GateworkForCausalLM
from gatework.models.language.zoology_language_models import ZOOLOGY_LANGUAGE_MODELS
from gatework.tasks import create_task
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Training
from gatework.training.options import TrainerOptions
from gatework.training.recipe import read_recipe
from gatework.training.trainer import _strategy
from tests.recipe_files import LANGUAGE_MODELS, language_models
from tests.training.runs import contents, differing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "systems" / "zoology_language_models.md"

#: What makes a training of any of the recipes small enough for a CPU, but for its model and its processes.
SMALL = {
    "setting.dataset": "null",
    "setting.max_bytes": "300000",
    "setting.cache": "null",
    "setting.tokenizer": "bpe",
    "setting.vocab_size": "384",
    "setting.max_train_count": "null",
    "setting.length": "32",
    "setting.num_test": "4",
    "setting.num_validation": "4",
    "model.hidden_size": "48",
    "learning_rate": "0.01",
    "training.steps": "6",
    "training.batch_size": "2",
    "training.evaluations": "2",
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.accumulate_grad_batches": "1",
    "trainer.num_workers": "0",
    "trainer.log_every": "1",
}

#: FSDP on CPUs, which PyTorch can and Lightning refuses: what `gatework fit` makes for GPUs, elsewhere.
PLUGIN = """
import os
import signal
import sys

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed import fsdp

from gatework.training import resume, trainer


Sharded = fsdp.FullyShardedDataParallel


class OnCPU(Sharded):
    def __init__(self, *arguments, device_id=None, **options):
        super().__init__(*arguments, device_id=torch.device("cpu"), **options)


class CPUStrategy(FSDPStrategy):
    def _setup_model(self, model):
        model = super()._setup_model(model)
        units = sum(isinstance(part, Sharded) for part in model.modules())
        print(f"{units} units, {sum(own.numel() for own in model.parameters())} here", file=sys.stderr)
        return model


fsdp.FullyShardedDataParallel = OnCPU
trainer.FSDPStrategy = CPUStrategy
trainer.device_of = lambda options: torch.device("cuda")
if "STOP_AFTER" in os.environ:
    resume.ExactResume._told_to_stop = lambda self, trainer: (
        signal.SIGTERM if trainer.global_step == int(os.environ["STOP_AFTER"]) else 0
    )
"""


@pytest.mark.parametrize("path", language_models(), ids=lambda path: path.stem)
def test_a_recipe_has_only_options_that_there_are(path):
    recipe = read_recipe(path)
    model = ZOOLOGY_LANGUAGE_MODELS[path.stem]
    here = {
        "dataset": None,
        "tokenizer": "bytes",
        "cache": None,
        "max_bytes": 300_000,
        "max_train_count": None,
    }
    assert create_task(recipe.task, recipe.setting | here).length == 2048
    assert recipe.model == model.model_options
    trainer, training = recipe.trainer, recipe.training
    tokens_per_step = training.batch_size * trainer.devices * trainer.accumulate_grad_batches * 2048
    assert training.steps * tokens_per_step == pytest.approx(model.billion_tokens * 1e9, rel=1e-3)
    assert tokens_per_step == 2**20 if model.published_millions > 1000 else 2**19
    assert recipe.setting["max_train_count"] == 125 * model.billion_tokens


def test_the_command_of_the_page_trains_a_recipe(tmp_path, monkeypatch):
    (command,) = (
        shlex.split(found.replace("\\\n", " "))
        for found in re.findall(r"^gatework fit (?:.+\\\n)*.+$", PAGE.read_text(), re.MULTILINE)
        if "accelerator cpu" in found
    )
    monkeypatch.chdir(ROOT)
    command[command.index("--output") + 1] = str(tmp_path / "run")
    assert main(command[1:]) == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    assert test["slices"].keys() == {"ar_hits", "other"}
    assert 0.04 < test["ar_share"] < 0.09
    weights = GateworkForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert [type(layer.mixer).__name__ for layer in weights.model.layers] == ["MultiHeadAttention"] * 2


def test_fsdp_shards_by_block():
    network = GateworkForCausalLM(GateworkConfig(vocab_size=9, hidden_size=8, num_hidden_layers=3))
    module = NextTokenModule(network, Training(), 0.1)
    options = TrainerOptions(accelerator="cuda", devices=2, strategy="fsdp")
    policy = _strategy(options, module.sharded_blocks()).kwargs["auto_wrap_policy"]
    units = [module for module in network.modules() if policy(module, recurse=False, nonwrapped_numel=0)]
    assert units == list(network.model.layers)
    assert all(isinstance(unit, DecoderBlock) for unit in units)


def finish(folder, name, *options, code=0, **environment):
    """Run ``gatework fit`` for a recipe in a process of its own, and those that it starts."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "NODE_RANK")}
    given = {option.partition("=")[0] for option in options}
    small = [f"--{option}={value}" for option, value in SMALL.items() if f"--{option}" not in given]
    recipe = LANGUAGE_MODELS / f"{name}.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "gatework", "fit", "--config", str(recipe), *small, *options],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == code, done.stderr
    return done.stderr


#: A hybrid. By SGD: saving whole weights of CPUs, FSDP gives the two averages of AdamW as one buffer.
HYBRID = (
    "base_conv_attention_351m",
    "--model.num_hidden_layers=4",
    "--model.mixers=[base_conv, {name: attention, num_heads: 4, rope: true}]",
    "--training.optimizer=sgd",
)
TWO = (*HYBRID, "--trainer.devices=2")
SHARDED = (*TWO, "--plugin=fsdp_on_cpu", "--trainer.strategy=fsdp")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder with a training that two processes have sharded, in ``fsdp``, and what they said."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "fsdp_on_cpu.py").write_text(PLUGIN)
    return folder, finish(folder, *SHARDED, "--output=fsdp")


@pytest.mark.slow
def test_ddp_and_fsdp_equal_one_process(sharded):
    folder, said = sharded
    alone = ("--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accumulate_grad_batches=2")
    finish(folder, *HYBRID, "--output=one", *alone)
    finish(folder, *TWO, "--output=ddp")
    one, ddp, fsdp = (contents(folder / name) for name in ("one", "ddp", "fsdp"))
    for found in (ddp, fsdp):
        weights = (found["last"]["state_dict"], one["last"]["state_dict"])
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
        assert found["result"]["test"]["loss"] == pytest.approx(one["result"]["test"]["loss"], rel=1e-5)

    # A unit for each block and one for what is around them; a process holds half of the weights.
    held = [int(count) for count in re.findall(r"5 units, (\d+) here", said)]
    assert len(held) == 2, said
    assert held == pytest.approx([fsdp["result"]["parameters"] / 2] * 2, rel=0.05)


@pytest.mark.slow
def test_a_sharded_training_resumes_exactly(sharded):
    folder, _ = sharded
    finish(folder, *SHARDED, "--output=stopped", code=128 + signal.SIGTERM, STOP_AFTER="4")
    finish(folder, *SHARDED, "--output=stopped")
    assert differing(contents(folder / "stopped"), contents(folder / "fsdp")) == []
