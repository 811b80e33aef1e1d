"""Study directories of a task that is not on tokens: models at image sizes, scaled over resolutions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatework.study.results import RESULT_FORMAT
from gatework.study.spec import RunSpec
from gatework.tasks.declaration import Axis, Cost, Declaration, Scaling, ScalingCurve, Unit
from gatework.tasks.task import Quality
from tests.study.synthetic_studies import write_study

RESOLUTION = Scaling(
    key="inference",
    option="resolutions",
    point="resolution",
    curves=(
        ScalingCurve(
            "images_per_second",
            heading="Images per second against resolution",
            title="Images/s",
            hover="sees {} images/s",
            is_timed=True,
        ),
        ScalingCurve(
            "peak_bytes",
            heading="Memory against resolution",
            title="Peak memory",
            format="bytes",
            hover="needs {}",
        ),
    ),
    question="How does it scale with resolution?",
    caption="Speed and memory of one image, at growing resolutions.",
    title="Resolution in pixels",
    hover="at {} pixels",
    column="images/s at {}",
)
IMAGES = Declaration(
    candidates=Axis("model"),
    sizes=Axis("size", title="image size (pixels)"),
    unit=Unit("image"),
    scalings=(RESOLUTION,),
)
#: The same with a cost of its own, counted in two ways.
SEGMENTS = replace(
    IMAGES,
    costs=(
        Cost("window_bytes", "window memory", "bytes", switch="at test time"),
        Cost("padded_bytes", "padded window", "bytes", instead_of="window_bytes", switch="with padding"),
        Cost("latency", "latency", "seconds"),
    ),
    lean="window_bytes",
)
ACCURACY = Quality("top-1 accuracy", "higher", unit="%", chance=10.0, range=(0.0, 100.0))
# label: definition, accuracy at size 64 and 128, parameters, images/s at size 64
MODELS: dict[str, tuple[dict[str, Any], tuple[float, float], int, float]] = {
    "convnext": ({"name": "convnext_atto"}, (61.0, 70.0), 3_400_000, 900.0),
    "vit": ({"name": "vit_tiny", "patch_size": 8}, (55.0, 71.5), 5_700_000, 700.0),
    "hornet": ({"name": "hornet_tiny", "orders": [2, 3, 4, 5]}, (63.0, 72.0), 22_000_000, 310.0),
}
RESOLUTIONS = (64, 128, 256)


def image_study(
    directory: Path,
    *,
    declaration: Declaration = IMAGES,
    models: Sequence[str] = tuple(MODELS),
    sizes: Sequence[int] = (64, 128),
    seeds: Sequence[int] = (0, 1),
    slow: Sequence[str] = ("vit",),
    boost: float = 0.0,
    extra: Mapping[str, float] | None = None,
) -> Path:
    """Three models at two sizes; vit was still improving, and goes no further than 128 pixels.

    ``boost`` is added to every accuracy, ``extra`` to the metrics of every run.
    """
    runs, results = [], []
    for model in models:
        for size in sizes:
            for seed in seeds:
                run = RunSpec(
                    task="photographs",
                    setting={"dataset": "digits"},
                    setting_name="digits",
                    candidate=model,
                    definition=MODELS[model][0],
                    size=size,
                    learning_rate=0.001,
                    seed=seed,
                    training={"steps": 400, "batch_size": 32},
                    measure={option.option: RESOLUTIONS for option in declaration.scalings},
                )
                runs.append(run)
                results.append(_result(run, declaration, slow=model in slow, boost=boost, extra=extra or {}))
    return write_study(
        directory,
        runs,
        results,
        quality=ACCURACY,
        title="Which model sees best?",
        budget="400 steps of 32 images for every model",
        declaration=declaration,
        notes=["Every model sees the same images in the same order."],
    )


def _result(
    run: RunSpec, declaration: Declaration, *, slow: bool, boost: float, extra: Mapping[str, float]
) -> dict[str, Any]:
    chance = random.Random(run.run_id)
    _, reached, parameters, rate = MODELS[run.candidate]
    final = reached[run.size > 64] + boost + chance.uniform(-0.4, 0.4)
    speed = rate * (64 / run.size) ** 2 * chance.uniform(0.97, 1.03)
    curve = []
    for step in range(100, 401, 100):
        part = step / 400 if slow else 1 - 0.5 ** (step / 25)
        quality, images = 10 + (final - 10) * part, step * 32
        point = {"step": step, "images": images, "seconds": images / speed, "train_loss": 2.3 - 2 * part}
        curve.append({**point, "loss": 2.3 - 1.9 * part, "quality": quality})
    flops = 2.0 * parameters * run.size
    cost = {
        "parameters": parameters,
        **_own_costs(run, declaration, parameters),
        "activation_bytes": 900 * run.size**2,
        "flops_per_image": flops,
        "training_flops": flops * 12_800,
        "training_images": 12_800,
        "seconds": 12_800 / speed,
        "images_per_second": speed,
    }
    points = RESOLUTIONS[:2] if run.candidate == "vit" else RESOLUTIONS
    measured = [
        {"resolution": at, "images_per_second": speed * (64 / at) ** 2, "peak_bytes": 4000 * at**2}
        for at in points
    ]
    stopped = "position embeddings end at 128 pixels" if run.candidate == "vit" else None
    return {
        "format": RESULT_FORMAT,
        "run_id": run.run_id,
        "spec": run.to_json(),
        "status": "finished",
        "message": None,
        "metrics": {
            "quality": final - 0.5,
            "loss": 0.42,
            "validation_quality": final,
            "validation_loss": 0.4,
            "slices": {},
            **extra,
        },
        "cost": cost,
        "curve": curve,
        "scaling": {
            scaling.key: {"measured": measured, "stopped": stopped} for scaling in declaration.scalings
        },
        "environment": {"gatework": "0.1.0", "torch": "2.9.0", "threads": 1},
        "started": "2026-01-05T10:00:00+00:00",
    }


def _own_costs(run: RunSpec, declaration: Declaration, parameters: int) -> dict[str, float | None]:
    """Bytes or seconds that grow with the model; nothing is known of convnext with padding."""
    found: dict[str, float | None] = {}
    for cost in declaration.costs:
        value = parameters * (1e-9 if cost.format == "seconds" else 4.0 + 4.0 * bool(cost.instead_of))
        found[cost.key] = None if cost.instead_of and run.candidate == "convnext" else value
    return found
