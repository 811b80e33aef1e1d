"""Study directories that look like real ones, made in a moment: what the report's tests read."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatework.study.results import RESULT_FORMAT, no_metrics
from gatework.study.spec import RunSpec, StudySpec
from gatework.tasks import task_declaration
from gatework.tasks.declaration import Declaration
from gatework.tasks.task import Quality

ACCURACY = Quality("accuracy", "higher", chance=1 / 64, range=(0.0, 1.0))
BITS = Quality("bits per byte", "lower", unit="bits per byte")
TRAINING = {"steps": 600, "batch_size": 64}
HYBRID = [{"name": "base_conv", "kernel_size": 3}, {"name": "attention", "num_heads": 1}]
# label: layers, quality reached at width 32 and 64, state bytes per channel, tokens/s at width 32
MIXERS = {
    "attention": ([{"name": "attention", "num_heads": 1}], (0.996, 0.999), 1024, 41_000),
    "base_conv+attention": (HYBRID, (0.985, 0.997), 520, 52_000),
    "based": ([{"name": "based", "feature_dim": 8}], (0.93, 0.988), 296, 33_000),
    "gated_linear_attention": ([{"name": "gated_linear_attention"}], (0.71, 0.96), 64, 38_000),
    "mamba2": ([{"name": "mamba2", "state_dim": 16}], (0.78, 0.975), 136, 29_000),
    "hyena": ([{"name": "hyena"}], (0.34, 0.62), 512, 27_000),
    "base_conv": ([{"name": "base_conv", "kernel_size": 3}], (0.22, 0.51), 512, 61_000),
    "sliding_window": ([{"name": "sliding_window", "window_size": 16}], (0.11, 0.14), 128, 71_000),
}
SETTINGS = {
    "N=64, 4 pairs": (64, 4),
    "N=128, 16 pairs": (128, 16),
    "N=256, 32 pairs": (256, 32),
    "N=512, 64 pairs": (512, 64),
}
CONTEXTS = (64, 256, 1024)
TEXT_BITS = {"attention": 2.31, "base_conv+attention": 2.36, "mamba2": 2.42, "base_conv": 2.94}


def run_spec(
    task: str,
    setting: str,
    mixer: str,
    width: int,
    rate: float,
    seed: int,
    *,
    training: Mapping[str, Any] | None = None,
) -> RunSpec:
    """A run; settings that are not in the table above are named by the caller and short."""
    layers = MIXERS[mixer][0] if mixer in MIXERS else [{"name": mixer}]
    options: dict[str, Any] = {"corpus": "stdlib", "length": 64}
    if task == "recall":
        length, pairs = SETTINGS.get(setting, (32, 4))
        options = {"input_seq_len": length, "num_kv_pairs": pairs, "vocab_size": 128, "num_train": 20_000}
    measure = {"decode_contexts": CONTEXTS}
    return RunSpec(
        task, options, setting, mixer, layers, width, rate, seed, training or TRAINING, measure=measure
    )


def result_of(
    run: RunSpec,
    final: float,
    *,
    status: str = "finished",
    message: str | None = None,
    slow: bool = False,
) -> dict:
    """A plausible result: a sigmoid learning curve up (or down) to ``final``, costs from the table above.

    It is flat at the end, unless it is to be ``slow``: then it is straight, and ends where it was rising.
    """
    chance = random.Random(run.run_id)
    _, _, state, rate = MIXERS.get(run.candidate, ([], (), 100, 10_000))
    speed = rate * 32 / run.size * chance.uniform(0.95, 1.05)
    start = 0.02 if run.task == "recall" else 6.2
    curve = curve_of(run, start, final, speed=speed, chance=chance, slow=slow)
    if status == "diverged":
        curve = [*curve[:5], {**curve[5], "loss": 55.0, "quality": start}]
    last = curve[-1]
    metrics: dict[str, Any] = {
        # Test data are a little harder than those that the learning rate was chosen on.
        "quality": final - 0.003 if run.task == "recall" else final + 0.01,
        "loss": last["loss"] * 1.01,
        "validation_quality": last["quality"],
        "validation_loss": last["loss"],
        "slices": {},
    }
    parameters = 64 * run.size + 12 * run.size**2
    cost = {
        "parameters": parameters,
        "state_bytes": state * run.size,
        "published_state_bytes": None if run.candidate == "base_conv" else 2 * state * run.size,
        "activation_bytes": 900 * state**0.5 * run.size,
        "flops_per_token": 6 * parameters + 40 * state,
        "training_flops": (6 * parameters + 40 * state) * last["tokens"],
        "training_tokens": last["tokens"],
        "seconds": last["seconds"],
        "tokens_per_second": speed,
    }
    if status != "finished":
        metrics = no_metrics()
    return {
        "format": RESULT_FORMAT,
        "run_id": run.run_id,
        "spec": run.to_json(),
        "status": status,
        "message": message,
        "metrics": None if status == "failed" else metrics,
        "cost": None if status == "failed" else cost,
        "curve": None if status == "failed" else curve,
        "scaling": {"decoding": decoding_of(run, state, speed)} if status == "finished" else {},
        "environment": {"gatework": "0.1.0", "torch": "2.9.0", "platform": "Linux x86_64", "threads": 1},
        "started": "2026-01-05T10:00:00+00:00",
    }


def curve_of(
    run: RunSpec, start: float, final: float, *, speed: float, chance: random.Random, slow: bool
) -> list[dict[str, float]]:
    """A point every 50 steps, with a little noise."""
    curve = []
    steps = run.training["steps"]
    for step in range(50, steps + 1, 50):
        reached = 1 / (1 + math.exp(-(step - 220) / 45)) if run.task == "recall" else 1 - math.exp(-step / 80)
        reached = step / steps if slow else reached
        quality = start + (final - start) * reached + chance.gauss(0, 0.004)
        quality = min(quality, 1.0) if run.task == "recall" else quality
        loss = 4.2 * (1 - quality) if run.task == "recall" else quality * math.log(2)
        tokens = step * 4096
        point = {"step": step, "tokens": tokens, "seconds": tokens / speed, "train_loss": loss}
        curve.append({**point, "loss": loss, "quality": quality})
    return curve


def decoding_of(run: RunSpec, state: float, speed: float) -> dict[str, Any]:
    """Plausible measurements of decoding: hyena alone does not reach every context."""
    measured = [
        {"context": context, "tokens_per_second": speed / 30, "state_bytes": state * context}
        for context in CONTEXTS
    ]
    if run.candidate == "hyena":
        return {"measured": measured[:1], "stopped": "Hyena reads at most 64 tokens, got 240"}
    return {"measured": measured, "stopped": None}


def write_study(
    directory: Path,
    runs: Sequence[RunSpec],
    results: Sequence[dict],
    *,
    quality: Quality = ACCURACY,
    title: str,
    budget: str = "600 steps of 64 sequences for every mixer",
    declaration: Declaration | None = None,
    notes: Sequence[str] = ("Every mixer sees the same data in the same order.",),
) -> Path:
    """Write ``study.json`` and ``results`` as the engine does."""
    (directory / "results").mkdir(parents=True)
    study = StudySpec(
        name=directory.name,
        task=runs[0].task,
        command=f"gatework compare {runs[0].task} --output runs/{directory.name}",
        title=title,
        quality=quality,
        declaration=declaration or task_declaration(runs[0].task),
        runs=runs,
        notes=list(notes),
        budget=budget,
        created="2026-01-05T09:59:00+00:00",
    )
    (directory / "study.json").write_text(json.dumps(study.to_json()))
    for result in results:
        (directory / "results" / f"{result['run_id']}.json").write_text(json.dumps(result))
    return directory


def recall_study(
    directory: Path,
    *,
    rates: Sequence[float] = (0.003,),
    settings: int = 2,
    widths: Sequence[int] = (32, 64),
    mixers: Sequence[str] = tuple(MIXERS),
    seeds: Sequence[int] = (0, 1),
    boost: float = 1.0,
    steps: int = 600,
    slow: Sequence[str] = (),
) -> Path:
    """Eight mixers, two widths, two seeds; one seed of hyena diverged, one of mamba2 failed.

    ``boost`` brings every quality so much nearer to 1 (or further from it, below 1); the ``slow`` mixers were
    still improving when their training ended.
    """
    runs, results = [], []
    names = list(SETTINGS)[:settings]
    for level, setting in enumerate(names):
        for mixer, width, rate, seed in itertools.product(mixers, widths, rates, seeds):
            training = {**TRAINING, "steps": steps}
            run = run_spec("recall", setting, mixer, width, rate, seed, training=training)
            reached = MIXERS[mixer][1][min(width // 64, 1)] * (0.98 if seed else 1)
            reached *= (1 if MIXERS[mixer][1][0] > 0.98 else 0.72**level) * (0.9 if rate > 0.003 else 1)
            runs.append(run)
            final = max(1 - (1 - reached) / boost, 0.02)
            results.append(result_of(run, final, slow=mixer in slow))
    for mixer, width, status, message in (
        ("hyena", 64, "diverged", "loss 55.0 at step 300"),
        ("mamba2", 32, "failed", "RuntimeError: out of memory"),
    ):
        for index, run in enumerate(runs):
            if (run.candidate, run.size) == (mixer, width):
                results[index] = result_of(run, 0.5, status=status, message=message)
                break
    return write_study(
        directory,
        runs,
        results,
        title="Which token mixer recalls best?",
        budget=f"{steps} steps of 64 sequences for every mixer",
    )


def text_study(directory: Path) -> Path:
    """Four mixers at one width and two seeds on text, in bits per byte: lower is better."""
    runs = [run_spec("text", "python source", mixer, 128, 0.002, s) for mixer in TEXT_BITS for s in (0, 1)]
    results = [result_of(run, TEXT_BITS[run.candidate] + 0.012 * run.seed) for run in runs]
    return write_study(directory, runs, results, quality=BITS, title="Token mixers on real text")


def as_before(directory: Path, version: int) -> Path:
    """Rewrite a study on tokens in the format of before tasks declared what they compare.

    That is 3, or 2: then decoding was not timed, and states were not counted as published.
    """
    study = json.loads((directory / "study.json").read_text())
    del study["declaration"]
    runs = [_spec_before(run, version) for run in study["runs"]]
    study |= {"format": f"gatework.study/{version}", "runs": runs}
    (directory / "study.json").write_text(json.dumps(study))
    for path in (directory / "results").iterdir():
        result = json.loads(path.read_text())
        scaling = result.pop("scaling")
        result |= {"format": f"gatework.result/{version}", "spec": _spec_before(result["spec"], version)}
        if version == 3:
            result["decoding"] = scaling.get("decoding")
        else:
            (result["cost"] or {}).pop("published_state_bytes", None)
        path.write_text(json.dumps(result))
    return directory


def _spec_before(spec: dict[str, Any], version: int) -> dict[str, Any]:
    names = {"candidate": "mixer", "definition": "layers", "size": "width"}
    older = {names.get(name, name): value for name, value in spec.items() if name != "measure"}
    return older | (spec.get("measure", {}) if version == 3 else {})
