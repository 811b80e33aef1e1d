"""The results of a study: one file per ended run, written once and never half."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatework.files import read_json, remove_leftovers, write_atomically
from gatework.study.sections import sections_of
from gatework.study.spec import RunSpec, StudyError, StudySpec, is_finite_number
from gatework.tasks.declaration import Declaration

RESULT_FORMAT = "gatework.result/4"
#: What is read as well: when all tasks were on tokens, whose decoding was timed since the second of these.
_OLDER_RESULT_FORMATS = ("gatework.result/2", "gatework.result/3")
STATUSES = ("finished", "diverged", "failed")
#: Numbers of a run on test data, and on the validation data that learning rates are chosen by.
METRICS = ("quality", "loss", "validation_quality", "validation_loss")
_KEYS = {
    "format",
    "run_id",
    "spec",
    "status",
    "message",
    "metrics",
    "cost",
    "curve",
    "environment",
    "started",
}
#: Where the third format has what stands under ``scaling`` now, and what that held.
_DECODING = "decoding"
_DECODING_ROW = ("context", "tokens_per_second", "state_bytes")


class ResultStore:
    """The folder ``results/`` of a study directory.

    Args:
        directory: The study directory.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "results"

    def path(self, run_id: str) -> Path:
        """Return where the result of that run is, or would be."""
        return self.folder / f"{run_id}.json"

    def prepare(self) -> None:
        """Make the folder, and delete what a killed writer left: temporary files that never got their name.

        Raises:
            FileError: If the folder cannot be made.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StudyError(f"cannot make {self.folder}: {error.strerror or error}") from error
        for folder in (self.folder, self.folder.parent):
            remove_leftovers(folder)

    def write(self, result: Mapping[str, Any]) -> None:
        """Store the result of one ended run, instead of an earlier one of the same run.

        Args:
            result: In the form that :func:`check_result` accepts.

        Raises:
            ValueError: If it is no such result.
            FileError: If it cannot be written; an earlier result is then still there.
        """
        check_result(result)
        text = json.dumps(result, indent=1, allow_nan=False)
        write_atomically(self.path(result["run_id"]), text + "\n")

    def read(self, run_id: str) -> dict[str, Any]:
        """Return the result of one run.

        Raises:
            FileError: If its file is missing, broken, or not the result that its name says.
        """
        path = self.path(run_id)
        remedy = "restore it from a copy, or move it away to have that run repeated"
        result = read_json(path, remedy=remedy)
        try:
            check_result(result)
        except ValueError as error:
            raise StudyError(f"{path} is no valid result: {error}; {remedy}") from error
        if result["run_id"] != run_id:
            raise StudyError(f"{path} is the result of another run, {result['run_id']}; {remedy}")
        return result if result["format"] == RESULT_FORMAT else _upgraded(result)

    def read_all(self) -> dict[str, dict[str, Any]]:
        """Return every stored result by run id.

        Raises:
            FileError: If one of the files is broken or foreign: none is ever skipped.
        """
        return {path.stem: self.read(path.stem) for path in sorted(self.folder.glob("*.json"))}


def check_result(result: Mapping[str, Any]) -> None:
    """Refuse what is no complete result of the run that it names.

    Raises:
        ValueError: Saying what is wrong.
    """
    formats = (RESULT_FORMAT, *_OLDER_RESULT_FORMATS)
    if result.get("format") not in formats:
        known = " or ".join(map(repr, formats))
        raise ValueError(f"format must be {known}, got {result.get('format')!r:.80}")
    keys = _KEYS | {"scaling"} if result["format"] == RESULT_FORMAT else _KEYS
    if missing := sorted(keys - set(result)):
        raise ValueError(f"it lacks {', '.join(missing)}")
    try:
        run_id = RunSpec.from_json(result["spec"]).run_id
    except (TypeError, ValueError) as error:
        raise ValueError(f"its spec is invalid: {error}") from error
    if result["run_id"] != run_id:
        raise ValueError(f"run_id must be the hash of its spec, {run_id}, got {result['run_id']!r:.80}")
    if result["status"] not in STATUSES:
        raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {result['status']!r:.80}")
    for name in ("message", "started"):
        if not isinstance(result[name], str | None):
            raise ValueError(f"{name} must be text or null, got {result[name]!r:.80}")
    if result["status"] == "finished" and result["metrics"] is None:
        raise ValueError("a finished run must have metrics, got null")
    _check_numbers(result)


def no_metrics() -> dict[str, Any]:
    """Return the metrics of a run that has none: it diverged, failed or is missing."""
    return {**dict.fromkeys(METRICS), "slices": {}}


def _check_numbers(result: Mapping[str, Any]) -> None:
    """Check metrics, cost, curve and environment: objects of finite numbers, where they are not null."""
    metrics = result["metrics"]
    if metrics is not None:
        if not isinstance(metrics, dict) or not {*METRICS, "slices"} <= set(metrics):
            raise ValueError(f"metrics must hold {', '.join(METRICS)} and slices, got {metrics!r:.80}")
        _check_table("metrics", {name: metrics[name] for name in metrics if name != "slices"})
        _check_table("slices", metrics["slices"])
    if result["cost"] is not None:
        _check_table("cost", result["cost"])
    if not isinstance(result["curve"], list | None):
        raise ValueError(f"curve must be a list or null, got {result['curve']!r:.80}")
    for point in result["curve"] or ():
        _check_table("curve", point)
    if not isinstance(result["environment"], dict | None):
        raise ValueError(f"environment must be an object or null, got {result['environment']!r:.80}")
    scaling = result.get("scaling", {})
    if _DECODING in result:
        scaling = {_DECODING: result[_DECODING]} if result[_DECODING] is not None else {}
        _check_scaling(scaling, columns=_DECODING_ROW)
    _check_scaling(scaling)


def _check_scaling(scaling: Any, columns: Sequence[str] | None = None) -> None:
    """Check what was measured at growing points: a list of numbers at each, and why it ends."""
    if not isinstance(scaling, dict):
        raise ValueError(f"scaling must be an object, got {scaling!r:.80}")
    for name, found in scaling.items():
        if not isinstance(found, dict) or set(found) != {"measured", "stopped"}:
            raise ValueError(f"{name:.80} must hold measured and stopped, got {found!r:.80}")
        if not isinstance(found["stopped"], str | None):
            raise ValueError(f"{name:.80}: stopped must be text or null, got {found['stopped']!r:.80}")
        if not isinstance(found["measured"], list):
            raise ValueError(f"{name:.80}: measured must be a list, got {found['measured']!r:.80}")
        for row in found["measured"]:
            _check_table(name, row)
            wanted = columns or list(found["measured"][0])
            if set(row) != set(wanted):
                raise ValueError(f"{name:.80} must hold {', '.join(wanted)} at each point, got {row!r:.80}")


def _upgraded(result: dict[str, Any]) -> dict[str, Any]:
    """Bring a checked result of an older format into the present one."""
    kept = {name: value for name, value in result.items() if name != _DECODING}
    decoding = result.get(_DECODING)
    return {**kept, "format": RESULT_FORMAT, "scaling": {} if decoding is None else {_DECODING: decoding}}


def _check_table(name: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be an object, got {table!r:.80}")
    for key, value in table.items():
        if value is not None and not is_finite_number(value):
            raise ValueError(f"{name}: {key!r:.80} must be a finite number or null, got {value!r:.80}")


def finite_json(value: Any) -> Any:
    """Return a JSON value with ``null`` wherever a number is not finite (JSON knows no NaN)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite_json(entry) for entry in value]
    return value


def scaling_columns(declared: Declaration, result: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a table's columns of what was measured at growing points, see :meth:`Scaling.columns`."""
    found = result.get("scaling") or {}
    columns: dict[str, float | None] = {}
    for scaling in declared.scalings:
        columns |= scaling.columns((found.get(scaling.key) or {}).get("measured", []))
    return columns


def metric_columns(declared: Declaration, metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a table's columns of what a task measures beside quality and loss.

    These are the slices, ``"slice num_kv_pairs=4"`` and so on, what the task's report sections derive from
    the metrics, and the task's own numbers by their names.
    """
    slices: Mapping[str, float | None] = metrics.get("slices") or {}
    columns = {f"slice {name}": value for name, value in slices.items()}
    for section in sections_of(declared):
        columns |= section.run_columns(metrics)
    return columns | {name: value for name, value in metrics.items() if name not in (*METRICS, "slices")}


def write_table(path: Path, study: StudySpec, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write one CSV line per run of the grid: spec, status (``missing`` where there is none), metrics, cost.

    Args:
        path: The file to write, atomically.
        study: The study, with its grid; results of other runs are left out.
        results: Stored results by run id.

    Raises:
        FileError: If it cannot be written.
    """
    rows = [_row(study.declaration, run, results.get(run.run_id)) for run in study.runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _row(declared: Declaration, run: RunSpec, result: Mapping[str, Any] | None) -> dict[str, Any]:
    result = result or {"status": "missing"}
    metrics = result.get("metrics") or no_metrics()
    return {
        "run_id": run.run_id,
        "task": run.task,
        declared.candidates.name: run.candidate,
        "setting": run.setting_name,
        declared.sizes.name: run.size,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "status": result["status"],
        **{name: metrics[name] for name in METRICS},
        **(result.get("cost") or {}),
        **scaling_columns(declared, result),
        **metric_columns(declared, metrics),
        declared.definition: json.dumps(run.definition),
        **{f"setting {name}": value for name, value in run.setting.items()},
        **{f"training {name}": value for name, value in run.training.items()},
        "message": result.get("message"),
        "started": result.get("started"),
    }
