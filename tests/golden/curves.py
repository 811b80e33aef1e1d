"""Training losses, step by step, of a miniature of every recipe.

A change that is not meant to change numbers leaves them as they are. One that is writes them anew and says
so: ``python -m tests.golden.curves``.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback

from gatework.study.plan import model_options, plan_runs
from gatework.study.spec import RunSpec
from gatework.tasks import create_task
from gatework.tasks.language import parse_mixers
from gatework.tasks.module import make_module
from gatework.tasks.task import Training
from gatework.training.fit import fit
from gatework.training.options import TrainerOptions
from gatework.training.recipe import read_recipe
from gatework.training.trainer import make_trainer, quiet
from tests.recipe_files import studies, task_of, trainings

ROOT = Path(__file__).parents[2]
CURVES = Path(__file__).with_suffix(".json")
STEPS, ROWS = 10, 4


class Losses(Callback):
    """The training loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def recipes() -> list[Path]:
    """All recipes that a laptop trains: of comparisons, and of single trainings."""
    return sorted([*studies(), *trainings()])


def curves(path: Path, folder: Path) -> dict[str, list[float]]:
    """The losses of each model of a recipe, trained in miniature inside an empty ``folder``."""
    corpus = write_corpus(folder / "corpus")
    if path in trainings():
        return {"model": fit_losses(path, corpus, folder / "run")}
    return {mixer: losses(run) for mixer, run in miniatures(path, corpus).items()}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "recipes").with_suffix("").as_posix()


def miniatures(path: Path, corpus: Path) -> dict[str, RunSpec]:
    """One run per mixer of a recipe: its narrowest model, first rate, seed and setting, and little data."""
    recipe = yaml.safe_load(path.read_text())
    task = task_of(path)
    name, setting = next(iter(recipe["settings"].items()))
    training = {key: recipe["training"][key] for key in recipe["training"] if key != "evaluations"}
    runs = plan_runs(
        task,
        candidates=parse_mixers(recipe["mixers"]),
        settings={name: small(recipe.get("setting", {}) | setting, corpus if task == "text" else None)},
        sizes=[min(recipe["widths"])],
        learning_rates=recipe["learning_rates"][:1],
        seeds=recipe["seeds"][:1],
        training=training | {"steps": STEPS, "batch_size": ROWS, "evaluations": 1},
        model=recipe["model"],
    )
    return {run.candidate: run for run in reversed(runs)}


def small(setting: dict[str, Any], corpus: Path | None) -> dict[str, Any]:
    """The same setting with few examples, and with a text that is the same on every machine."""
    setting = dict(setting)
    if corpus is not None:
        # So little text supports few tokens.
        few = {"vocab_size": 300} if setting.get("tokenizer") == "bpe" else {}
        return setting | {"corpus": str(corpus), "num_test": 1} | few
    if "train" in setting:
        return {key: [part | {"num_examples": 24} for part in setting[key]] for key in ("train", "test")}
    return setting | {"num_train": 48, "num_test": 4}


def write_corpus(folder: Path) -> Path:
    """A few documents that no release of Python changes."""
    folder.mkdir(exist_ok=True)
    for index in range(60):
        lines = (
            f"line {line} of {index} holds {line * index % 97} and {line**2 % 31}\n" for line in range(40)
        )
        (folder / f"{index}.txt").write_text("".join(lines))
    return folder


def losses(run: RunSpec) -> list[float]:
    """Train one miniature, and return its loss at every step."""
    task, training = create_task(run.task, run.setting), Training.of(run.training)
    torch.manual_seed(run.seed)
    module = make_module(task, task.build_model(model_options(task, run)), training, run.learning_rate)
    batches = task.train_batches(training.batch_size, steps=training.steps, seed=run.seed)
    recorder = Losses()
    options = TrainerOptions(accelerator="cpu")
    with quiet():
        trainer = make_trainer(options, steps=STEPS, validate_every=10 * STEPS, callbacks=[recorder])
        trainer.fit(module, batches)
    return recorder.values


def fit_losses(path: Path, corpus: Path, directory: Path) -> list[float]:
    """What ``gatework fit`` writes down of a miniature of its recipe."""
    recipe = read_recipe(path)
    recipe = replace(
        recipe,
        setting=small(recipe.setting, corpus if recipe.task == "text" else None),
        training=replace(recipe.training, steps=STEPS, epochs=None, batch_size=ROWS, evaluations=1),
        trainer=replace(recipe.trainer, accelerator="cpu", log_every=1, num_workers=0, progress_bar=False),
    )
    assert fit(recipe, directory) == 0
    with (directory / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["split"] == "train"]


def main() -> None:
    torch.set_num_threads(1)
    written = {}
    for path in recipes():
        with tempfile.TemporaryDirectory() as folder:
            found = curves(path, Path(folder))
        written[name_of(path)] = {
            model: [round(loss, 6) for loss in values] for model, values in found.items()
        }
    CURVES.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
