"""The one JSON value behind the figures and the table of the report page.

Every number that people read is written here in Python (:mod:`gatework.page.quantities`); the page's
script only places it. Mixers and settings are referred to by their position in the grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gatework.page.quantities import (
    NOT_MEASURED,
    format_bytes,
    format_count,
    format_flops,
    format_quality,
    format_rate,
    format_seconds,
    log_axis,
)
from gatework.study.answer import describe_spread, quality_unit
from gatework.study.published import published_curves
from gatework.study.results import METRICS, perplexity, slice_columns
from gatework.study.summary import STATUSES, Cell, Run, Spread, Summary
from gatework.tasks.task import Quality

_COST_LINES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("parameters", "parameters ", format_count),
    ("state_bytes", "decoding state ", format_bytes),
    ("published_state_bytes", "state as published ", format_bytes),
    ("activation_bytes", "activation memory ", format_bytes),
    ("training_flops", "training compute ", format_flops),
    ("tokens_per_second", "", format_rate),
)
_COST_WRITERS: dict[str, Callable[[int | float | None], str]] = {
    "parameters": format_count,
    "state_bytes": format_bytes,
    "published_state_bytes": format_bytes,
    "activation_bytes": format_bytes,
    "flops_per_token": format_flops,
    "training_flops": format_flops,
    "training_tokens": format_count,
    "tokens_per_second": format_count,
    "seconds": format_seconds,
}
_PERPLEXITY_NAMES = {"overall": "", "ar_hits": "on AR hits ", "other": "on other tokens "}
_CURVE = ("step", "tokens", "seconds", "quality", "loss")


def page_data(summary: Summary) -> dict[str, Any]:
    """Collect what the page's script draws: plain JSON, without a number that is not finite."""
    mixers = {name: index for index, name in enumerate(summary.mixers)}
    settings = {name: index for index, name in enumerate(summary.settings)}
    return {
        "name": summary.study.name,
        "quality": quality_data(summary.quality, summary.cells),
        "series": [{"name": name, "about": layers_text(summary, name)} for name in mixers],
        "settings": list(settings),
        "widths": summary.widths,
        "clearest_setting": summary.clearest_setting,
        "has_rate_choice": summary.has_rate_choice,
        "has_published_state": any(cell.cost("published_state_bytes") for cell in summary.cells),
        "decode_contexts": summary.decode_contexts,
        "slice_columns": _slice_columns(summary),
        "axes": {
            "state": _log_axis(summary, "state_bytes", "Decoding state", format_bytes, 2),
            "published_state": _log_axis(
                summary, "published_state_bytes", "Decoding state as published", format_bytes, 2
            ),
            "flops": _log_axis(summary, "training_flops", "Training compute of one run", format_flops, 10),
            "memory": _log_axis(summary, "activation_bytes", "Activation memory", format_bytes, 2),
            "rate": _log_axis(summary, "tokens_per_second", "Training tokens/s", format_count, 10),
        },
        "decoding_axes": _decoding_axes(summary),
        "cells": [_cell(summary, cell, mixers[cell.mixer], settings[cell.setting]) for cell in summary.cells],
        "runs": [
            _run(summary, run, mixers[run.spec.mixer], settings[run.spec.setting_name])
            for run in summary.runs
        ],
        "published": [
            {
                "series": mixers[curve.mixer],
                "setting": settings[curve.setting],
                "widths": list(curve.widths),
                "values": list(curve.values),
                "hover": [f"{curve.model}, as published", curve.setting],
            }
            for curve in published_curves(summary)
        ],
    }


def layers_text(summary: Summary, mixer: str) -> str:
    """Write the layers behind a mixer label on one line: ``base_conv(kernel_size=3) → attention``."""
    spec = next(run.spec for run in summary.runs if run.spec.mixer == mixer)
    return " → ".join(_layer_text(layer) for layer in spec.layers)


def quality_title(quality: Quality) -> str:
    """Write the name of a quality as an axis shows it, with its unit and direction."""
    unit = quality_unit(quality)
    return f"{quality.name} ({f'{unit}, ' if unit else ''}{quality.better} is better)"


def _layer_text(layer: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name}={_option(value)}" for name, value in layer.items() if name != "name")
    return f"{layer['name']}({options})" if options else str(layer["name"])


def _option(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def quality_data(quality: Quality, cells: Iterable[Cell]) -> dict[str, Any]:
    """Describe the headline number to the page's script, with an axis range that holds all ``cells``."""
    values = [value for cell in cells if cell.quality for value in (cell.quality.low, cell.quality.high)]
    if quality.range is not None:
        low, high = quality.range
    else:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return {
        "name": quality.name,
        "title": quality_title(quality),
        "better": quality.better,
        "chance": quality.chance,
        "chance_text": f"chance {format_quality(quality.chance)}",
        "bounded": quality.range is not None,
        "range": [low - pad, high + pad],
    }


def _log_axis(
    summary: Summary, cost: str, title: str, write: Callable[[float], str], base: int
) -> dict[str, Any]:
    """Range (as exponents of ten) and ticks of a cost axis, the same in every selection."""
    spreads = [spread for cell in summary.cells if (spread := cell.cost(cost))]
    values = [value for spread in spreads for value in (spread.low, spread.high)]
    return log_axis(values, title, write, base)


def _cell(summary: Summary, cell: Cell, mixer: int, setting: int) -> dict[str, Any]:
    rate = cell.cost("tokens_per_second")
    return {
        "series": mixer,
        "setting": setting,
        "width": cell.width,
        "learning_rate": cell.learning_rate,
        "quality": triple(cell.quality),
        "diverged": cell.count("diverged"),
        "state": _positive(cell.cost("state_bytes")),
        "published_state": _positive(cell.cost("published_state_bytes")),
        "flops": _positive(cell.cost("training_flops")),
        "memory": _positive(cell.cost("activation_bytes")),
        "rate": _positive(rate),
        "rate_spread": triple(rate),
        "decoding": [_decoded(cell, context, rate) for context, rate in cell.decoding.items()],
        "hover": describe_cell(summary, cell),
    }


def _decoded(cell: Cell, context: int, rate: Spread) -> dict[str, Any]:
    """One point of the figure of generation."""
    state = cell.decoding_state[context]
    lines = [
        f"{cell.mixer}, width {cell.width}",
        cell.setting,
        f"context of {context:,} tokens",
        f"generates {format_rate(rate.mean)}",
        f"carries {format_bytes(state.mean)}",
    ]
    return {"context": context, "speed": triple(rate), "carried": state.mean, "hover": lines}


def _decoding_axes(summary: Summary) -> dict[str, Any]:
    """Axes of the figures of generation, the same in every selection."""
    rates = [spread for cell in summary.cells for spread in cell.decoding.values()]
    states = [spread.mean for cell in summary.cells for spread in cell.decoding_state.values()]
    ends = [value for spread in rates for value in (spread.low, spread.high)]
    return {
        "context": log_axis(summary.decode_contexts, "Context in tokens", "{:,.0f}".format, 2),
        "speed": log_axis(ends, "Generated tokens/s", format_count, 10),
        "carried": log_axis(states, "Decoding state", format_bytes, 2),
    }


def describe_cell(summary: Summary, cell: Cell) -> list[str]:
    """Describe a cell in lines, of which the first is a title."""
    lines = [f"{cell.mixer}, width {cell.width}", cell.setting]
    if cell.quality:
        described = describe_spread(cell.quality, quality_unit(summary.quality))
        lines.append(f"{summary.quality.name} {described}")
        if cell.quality.std is not None:
            lines.append(f"standard deviation {format_quality(cell.quality.std)}")
    lines += _perplexity_lines(cell)
    lines += [
        f"{count} of {len(cell.runs)} seeds {status}"
        for status in STATUSES[1:]
        if (count := cell.count(status))
    ]
    lines.append(f"learning rate {cell.learning_rate:g}{_chosen(cell)}")
    for name, title, write in _COST_LINES:
        if spread := cell.cost(name):
            lines.append(f"{title}{write(spread.mean)}")
    return lines


def _perplexity_lines(cell: Cell) -> list[str]:
    """Write the perplexities of a cell whose tokens were split into AR hits and others; else nothing."""
    found = {
        name: Spread.of(perplexity(run.loss(name)) for run in cell.runs)
        for name in ("overall", "ar_hits", "other")
    }
    return [
        f"perplexity {_PERPLEXITY_NAMES[name]}{describe_spread(spread)}"
        for name, spread in found.items()
        if spread is not None and found["ar_hits"] is not None
    ]


def _slice_columns(summary: Summary) -> list[str]:
    """Columns of what any run measured by slice, in the order of the first run that has them."""
    tables = (slice_columns((run.result or {}).get("metrics") or {}) for run in summary.runs)
    return list(dict.fromkeys(name for table in tables for name in table))


def _chosen(cell: Cell) -> str:
    """Write what a learning rate was chosen from."""
    if cell.num_rates == 1:
        return ""
    passed_over = f" ({cell.num_unstable_rates} diverged)" if cell.num_unstable_rates else ""
    return f", best of {cell.num_rates} on validation data{passed_over}"


def _run(summary: Summary, run: Run, mixer: int, setting: int) -> dict[str, Any]:
    result = run.result or {}
    values, texts = _numbers(run)
    sliced = slice_columns(result.get("metrics") or {})
    values |= sliced
    texts |= {name: format_quality(value) for name, value in sliced.items()}
    for context in summary.decode_contexts:
        speed = run.decoding.get(context, {}).get("tokens_per_second")
        values[f"decode_{context}"], texts[f"decode_{context}"] = speed, format_count(speed)
    return {
        "id": run.spec.run_id,
        "series": mixer,
        "setting": setting,
        "layers": " → ".join(_layer_text(layer) for layer in run.spec.layers),
        "status": run.status,
        "message": result.get("message"),
        "started": result.get("started"),
        "environment": _environment_text(result.get("environment")),
        "spec": json.dumps(run.spec.to_json(), indent=2, ensure_ascii=False),
        "values": {
            "width": run.spec.width,
            "learning_rate": run.spec.learning_rate,
            "seed": run.spec.seed,
            **values,
        },
        "texts": {
            "width": str(run.spec.width),
            "learning_rate": f"{run.spec.learning_rate:g}",
            "seed": str(run.spec.seed),
            **texts,
        },
        "curve": _curve(result.get("curve") or ()),
    }


def _numbers(run: Run) -> tuple[dict[str, float | None], dict[str, str]]:
    """The metrics and costs of a run, once to sort by and once to read; units stand in the table's head."""
    values = {name: run.metric(name) for name in METRICS} | {name: run.cost(name) for name in _COST_WRITERS}
    texts = {name: format_quality(values[name]) for name in METRICS}
    texts |= {name: write(values[name]) for name, write in _COST_WRITERS.items()}
    return values, texts


def _curve(points: Iterable[Mapping[str, Any]]) -> dict[str, list[int | float | None]]:
    """The learning curve by column, rounded to what a screen can show: the page carries every run's."""
    kept = list(points)
    return {name: [_rounded(point.get(name)) for point in kept] for name in _CURVE}


def _rounded(value: int | float | None) -> int | float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def _environment_text(environment: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (environment or {}).items()) or NOT_MEASURED


def triple(spread: Spread | None) -> list[float] | None:
    """Mean, worst and best of a spread, as the page's script reads it."""
    return None if spread is None else [spread.mean, spread.low, spread.high]


def _positive(spread: Spread | None) -> float | None:
    """The mean, None where a logarithmic axis could not show it."""
    return spread.mean if spread is not None and spread.mean > 0 else None


def environments(runs: Sequence[Run]) -> list[str]:
    """Write each distinct environment in which a run was measured, in the order of the grid."""
    found = [_environment_text((run.result or {}).get("environment")) for run in runs]
    return [text for text in dict.fromkeys(found) if text != NOT_MEASURED]
