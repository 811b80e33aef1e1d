"""One run of a planned study, executed in this process: what schedulers call, many at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gatework.study.engine import EXECUTE, check_plugins, result_of, worker_setup
from gatework.study.executor import Ended
from gatework.study.results import ResultStore
from gatework.study.spec import RunSpec, StudyError, StudySpec
from gatework.study.worker import answer, load


def run_one(
    directory: Path, run_id: str, *, num_threads: int = 1, execute: str = EXECUTE
) -> tuple[dict[str, Any], bool]:
    """Execute one run of a study, unless it finished or diverged before, and store its result.

    Any number of processes may do so at once, on every machine that sees the directory: each run has a file
    of its own, which is written aside and moved into place.

    Args:
        directory: A study directory with ``study.json``.
        run_id: Which run.
        num_threads: Threads that PyTorch may use; sums depend on them.
        execute: ``"module:function"`` from a run's spec (a JSON object) to its result.

    Returns:
        The run's result, and whether it was executed now.

    Raises:
        FileError: If there is no such study or run, one of its files is broken, the result cannot be stored,
            or the study needs a plugin that was not loaded here.
    """
    study = StudySpec.read(directory)
    check_plugins(study)
    run = _find(study, run_id, directory)
    store = ResultStore(directory)
    if (stored := _final(store, run_id)) is not None:
        return stored, False
    try:
        store.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make {store.folder}: {error.strerror or error}") from error
    function = load(worker_setup(study.runs, study.plugins, execute, num_threads))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    message = answer(function, run.to_json())
    result = result_of(Ended(run, started, message.get("result"), message.get("error")))
    # Somebody else may have executed the same run meanwhile; a failure here must not hide that.
    if result["status"] == "failed" and (stored := _final(store, run_id)) is not None:
        return stored, False
    _write(store, result)
    return result, True


def _write(store: ResultStore, result: dict[str, Any]) -> None:
    """Store a result; a study that begins in the same moment may clean up the file on its way to its name."""
    try:
        store.write(result)
    except ValueError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        store.write(result)


def _find(study: StudySpec, run_id: str, directory: Path) -> RunSpec:
    for run in study.runs:
        if run.run_id == run_id:
            return run
    raise StudyError(
        f"{run_id!r} is no run of the study in {directory}, which has {len(study.runs)}, "
        f"such as {study.runs[0].run_id}"
    )


def _final(store: ResultStore, run_id: str) -> dict[str, Any] | None:
    """The stored result of a run that need not be executed again."""
    if not store.path(run_id).exists():
        return None
    result = store.read(run_id)
    return result if result["status"] in ("finished", "diverged") else None
