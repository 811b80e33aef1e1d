"""A tiny training with everything random in it, in forked processes that can be killed anywhere."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from jaxtyping import config
from torch.utils.data import Dataset

from gatework.data.loader import ResumableLoader
from gatework.data.segment import TokenBatch
from gatework.tasks.recall import RecallTask
from gatework.training.fit import fit
from gatework.training.options import FitTraining, TrainerOptions
from gatework.training.recipe import Recipe


class NoisyRows(Dataset):
    """Rows of recall with some tokens replaced, drawn from all three generators."""

    def __init__(self, batches):
        self.inputs = torch.cat([batch.inputs for batch in batches])
        self.labels = torch.cat([batch.labels for batch in batches])

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        inputs = self.inputs[index].clone()
        inputs[random.randrange(16)] = int(np.random.randint(40))
        inputs[int(torch.randint(16, ()))] = 0
        return inputs, self.labels[index]


def collate(rows):
    inputs, labels = (torch.stack(column) for column in zip(*rows, strict=True))
    return TokenBatch(inputs, labels, [])


class NoisyRecall(RecallTask):
    """Recall whose training rows are shuffled and changed at random; ``conftest.py`` registers it."""

    def train_batches(self, batch_size, *, steps, seed):
        rows = NoisyRows(super().train_batches(batch_size, steps=steps, seed=seed))
        return ResumableLoader(rows, batch_size, seed=seed, shuffle=True, collate=collate)


SETTING = {
    "vocab_size": 40,
    "input_seq_len": 16,
    "num_kv_pairs": 3,
    "random_non_queries": False,
    "num_train": 52,
    "num_test": 12,
}


def recipe(steps=18, **changes):
    """A training of 18 steps over 2.6 epochs of 7 batches; ``trainer`` adds to the trainer's options."""
    trainer = {"checkpoint_every": 2, "log_every": 3, "accelerator": "cpu", **changes.pop("trainer", {})}
    training = {"steps": steps, "batch_size": 8, "evaluations": 4, **changes.pop("training", {})}
    return Recipe(
        task="noisy",
        setting=SETTING,
        model={
            "hidden_size": 8,
            "mixers": ["base_conv", {"name": "attention", "dropout": 0.2}],
            "channel_mixer": "none",
            "resid_dropout": 0.1,
        },
        learning_rate=0.01,
        training=FitTraining(**training),
        trainer=TrainerOptions(**trainer),
        **changes,
    )


def run(recipe, directory, prepare=None):
    """Train in this process and return the exit code."""
    if prepare is not None:
        prepare()
    return fit(recipe, Path(directory), resume_hint="the same command")


class Training:
    """A forked process that trains; waiting for it does not wait for loader processes that it leaves."""

    def __init__(self, recipe, directory, prepare=None):
        self.directory = directory
        self.pid = os.fork()
        if self.pid == 0:
            try:
                code = self._train(recipe, prepare)
            except BaseException:
                traceback.print_exc()
                code = 99
            os._exit(code)

    def _train(self, recipe, prepare):
        torch.set_num_threads(1)
        config.update("jaxtyping_disable", True)  # beartype draws from Python's generator what it checks
        log = os.open(f"{self.directory}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 2)
        sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115 (pytest has put its own there)
        return run(recipe, self.directory, prepare)

    def wait(self, seconds):
        """Return the exit code, negative if it was killed, or None if it has not ended by then."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.002)


def finish(recipe, directory, prepare=None):
    """Train in a forked process and return its exit code, which is negative if it was killed."""
    process = Training(recipe, directory, prepare)
    code = process.wait(120)
    if code is None:
        os.kill(process.pid, signal.SIGKILL)
        raise AssertionError(f"training in {directory} did not end within two minutes")
    return code


def kill_after(seconds, recipe, directory, signum=signal.SIGKILL):
    """Train in a forked process, send it a signal after some time, and return its exit code."""
    process = Training(recipe, directory)
    code = process.wait(seconds)
    if code is None:
        os.kill(process.pid, signum)
        code = process.wait(120)
    assert code is not None
    return code


def stop_after_save(recipe, directory, signum):
    """Train in a forked process, send it a signal once it has saved, and return its exit code."""
    last = Path(directory) / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    process = Training(recipe, directory)
    code = process.wait(0)
    while code is None and not (last.exists() and last.stat().st_mtime_ns > before):
        code = process.wait(0.01)
    if code is None:
        os.kill(process.pid, signum)
        code = process.wait(120)
    assert code is not None
    return code


def die_at(name, count):
    """Make the ``count``-th call of ``os.NAME`` the last thing that the process does."""

    def prepare():
        original, calls = getattr(os, name), iter(range(1, 10**6))

        def deadly(*arguments, **options):
            before = next(calls)
            if before == count:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            return original(*arguments, **options)

        setattr(os, name, deadly)

    return prepare


def contents(directory):
    """Everything that must not depend on interruptions."""
    directory = Path(directory)
    found = {
        "metrics": (directory / "metrics.csv").read_text(),
        "result": json.loads((directory / "result.json").read_text()),
        "recipe": (directory / "recipe.yaml").read_text(),
        "model": (directory / "model" / "model.safetensors").read_bytes(),
    }
    for name in ("last", "best"):
        found[name] = torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def differing(left, right, path=""):
    """Paths of what differs between two nested values, tensors compared bit by bit."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same = left.dtype == right.dtype and left.shape == right.shape
        return [] if same and _bits(left) == _bits(right) else [path]
    if type(left) is not type(right):
        return [path]
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: {left.keys() ^ right.keys()}"]
        return [name for key in left for name in differing(left[key], right[key], f"{path}.{key}")]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [f"{path}: length"]
        pairs = enumerate(zip(left, right, strict=True))
        return [name for index, (a, b) in pairs for name in differing(a, b, f"{path}[{index}]")]
    return [] if left == right else [path]


def _bits(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
