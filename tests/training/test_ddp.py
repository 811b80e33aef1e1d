"""Two processes through the command line: the numbers of one, resumed exactly, and stopped together."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from tests.training.runs import contents, differing

RECIPE = {
    "task": "recall",
    "setting": {
        "vocab_size": 40,
        "input_seq_len": 16,
        "num_kv_pairs": 3,
        "random_non_queries": False,
        "num_train": 160,
        "num_test": 20,
    },
    "model": {
        "hidden_size": 8,
        "mixers": ["base_conv", {"name": "attention", "dropout": 0.1}],
        "channel_mixer": "none",
    },
    "learning_rate": 0.01,
    "training": {"steps": 40, "batch_size": 8, "evaluations": 4},
    "trainer": {"accelerator": "cpu", "checkpoint_every": 3, "log_every": 5},
}

PLUGIN = """
import os
import gatework
from gatework.layers.sequence.gated_conv import BaseConv

class Poison(BaseConv):
    calls = 0

    def forward(self, x):
        Poison.calls += self.training
        broken = os.environ.get("LOCAL_RANK") == "1" and Poison.calls > 12
        return super().forward(x) * (float("nan") if broken else 1.0)

gatework.register_mixer("poison", Poison)
"""


def start(folder, *options):
    command = [sys.executable, "-m", "gatework", "fit", "--config", "recipe.yaml", *options]
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "NODE_RANK")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder, *options):
    process = start(folder, *options)
    _, error = process.communicate(timeout=200)
    return process.returncode, error


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "poison_plugin.py").write_text(PLUGIN)
    return tmp_path


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(folder):
    plain = ("--model.mixers", "[base_conv, attention]", "--training.steps", "20")
    code, error = finish(folder, "--output", "two", "--trainer.devices", "2", *plain)
    assert code == 0, error
    assert "after 20 steps" in error
    code, error = finish(folder, "--output", "one", "--trainer.accumulate_grad_batches", "2", *plain)
    assert code == 0, error
    two, one = (contents(folder / name) for name in ("two", "one"))
    for name, weights in one["last"]["state_dict"].items():
        torch.testing.assert_close(two["last"]["state_dict"][name], weights, rtol=1e-5, atol=1e-6)
    tables = [list(csv.DictReader(found["metrics"].splitlines())) for found in (two, one)]
    assert len(tables[0]) == len(tables[1]) == 8
    for left, right in zip(*tables, strict=True):
        assert (left["step"], left["tokens"], left["split"]) == (
            right["step"],
            right["tokens"],
            right["split"],
        )
        assert float(left["loss"]) == pytest.approx(float(right["loss"]), rel=1e-5)


@pytest.mark.slow
def test_killed_with_all_processes_it_resumes_exactly(folder):
    two = ("--trainer.devices", "2", "--trainer.num_workers", "1")
    code, error = finish(folder, "--output", "whole", *two)
    assert code == 0, error
    rng, killed = random.Random(0), 0
    for _ in range(4):
        process = start(folder, "--output", "killed", *two)
        target = folder / "killed" / "checkpoints" / "last.ckpt"
        before = target.stat().st_mtime_ns if target.is_file() else 0
        while process.poll() is None and (not target.is_file() or target.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate(timeout=60)
        if process.returncode == 0:
            break
    assert killed >= 2
    assert finish(folder, "--output", "killed", *two)[0] == 0
    assert differing(contents(folder / "killed"), contents(folder / "whole")) == []

    process = start(folder, "--output", "stopped", *two)
    while not (folder / "stopped" / "checkpoints" / "last.ckpt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # to the first process only: it tells the other
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    assert error.splitlines()[-1].startswith(
        "stopped by SIGTERM after saving; to resume: gatework fit --config"
    )
    assert finish(folder, "--output", "stopped", *two)[0] == 0
    assert differing(contents(folder / "stopped"), contents(folder / "whole")) == []


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(folder):
    broken = ("--plugin", "poison_plugin", "--model.mixers", "[poison]", "--model.num_hidden_layers", "1")
    began = time.monotonic()
    code, error = finish(folder, "--output", "broken", "--trainer.devices", "2", *broken)
    assert code == 1, error
    assert "loss is nan at step 13 in process 1; the update was not made" in error
    assert time.monotonic() - began < 100  # nobody waited for the other
    last = torch.load(folder / "broken" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["gatework"]["step"] == 12
