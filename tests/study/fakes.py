"""A study whose runs take no training: what they do is written in their setting, and each leaves a trace.

Run as a program (``python -m tests.study.fakes DIRECTORY GRID``), it is the parent process that tests kill.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from gatework.files import FileError
from gatework.study import Quality, RunSpec, StudySpec, expand_grid, run_study
from gatework.study.results import RESULT_FORMAT
from gatework.tasks.language import LANGUAGE

EXECUTE = "tests.study.fakes:execute"
ROOT = Path(__file__).parents[2]
QUALITY = Quality(name="accuracy", better="higher", chance=0.0, range=(0.0, 1.0))


def execute(spec: dict[str, Any]) -> Any:
    """Leave a trace named after the run and the process, then do what the setting says."""
    run_id = RunSpec.from_json(spec).run_id
    traces = Path(spec["training"]["traces"])
    earlier = len(list(traces.glob(f"{run_id}.*")))
    (traces / f"{run_id}.{os.getpid()}.{uuid.uuid4().hex[:8]}").touch()
    time.sleep(spec["training"]["seconds"])
    deed = spec["setting"].get("deed", "finish")
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "leave":
        os._exit(3)
    elif deed == "exit":
        sys.exit("this run leaves")
    elif deed == "raise" or (deed == "raise once" and not earlier):
        raise RuntimeError("the widget is out of cheese")
    elif deed == "burn":
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
    elif deed == "return nothing":
        return None
    result = result_of(spec)
    if deed == "diverge":
        result |= {
            "status": "diverged",
            "metrics": {
                "quality": float("nan"),
                "loss": float("inf"),
                "validation_quality": float("nan"),
                "validation_loss": float("inf"),
                "slices": {},
            },
        }
    elif deed == "environment":
        result["environment"] = {name: os.environ[name] for name in os.environ if name.endswith("_THREADS")}
    elif deed == "impostor":
        result["run_id"] = "0" * 16
    elif deed == "unserialisable":
        result["cost"]["parameters"] = {1, 2}
    return result


def result_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": RESULT_FORMAT,
        "run_id": RunSpec.from_json(spec).run_id,
        "spec": spec,
        "status": "finished",
        "message": None,
        "metrics": {
            "quality": spec["size"] / 100,
            "loss": 0.5,
            "validation_quality": spec["size"] / 100,
            "validation_loss": 0.5,
            "slices": {"num_kv_pairs=4": 0.25},
        },
        "cost": {"parameters": 10, "seconds": 0.05},
        "curve": [{"step": 1, "tokens": 64, "seconds": 0.1, "train_loss": None, "loss": 1.0, "quality": 0.5}],
        "scaling": {},
        "environment": {"threads": 1},
        "started": "2026-01-01T00:00:00+00:00",
    }


def make_study(
    traces: Path, *, deeds: tuple[str, ...] = ("finish",), seconds: float = 0.05, **axes: Any
) -> StudySpec:
    """A study with one setting per deed."""
    traces.mkdir(exist_ok=True)
    grid: dict[str, Any] = {"sizes": [8], "learning_rates": [0.01], "seeds": [0]} | axes
    runs = expand_grid(
        "recall",
        candidates={"attention": [{"name": "attention", "num_heads": 1}]},
        settings={deed: {"deed": deed} for deed in deeds},
        training={"traces": str(traces), "seconds": seconds},
        **grid,
    )
    return StudySpec(
        name="fake",
        task="recall",
        command="gatework compare recall --fake",
        title="Fake",
        quality=QUALITY,
        declaration=LANGUAGE,
        runs=runs,
    )


def executions(traces: Path) -> dict[str, int]:
    """How often each run was begun."""
    counts: dict[str, int] = {}
    for trace in traces.iterdir():
        run_id = trace.name.split(".")[0]
        counts[run_id] = counts.get(run_id, 0) + 1
    return counts


def worker_pids(traces: Path) -> set[int]:
    return {int(trace.name.split(".")[1]) for trace in traces.iterdir()}


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(condition: Any, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {condition}")
        time.sleep(0.01)


def stored(directory: Path) -> set[str]:
    return {path.stem for path in (directory / "results").glob("*.json")}


def start_parent(
    study: StudySpec, directory: Path, *, num_workers: int = 2, executor: str = "local", fault: str = ""
) -> subprocess.Popen[str]:
    """Run the study in a process of its own, with a fault that :func:`plant` knows."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    grid = directory.with_name(f"{directory.name}-grid.json")
    grid.write_text(json.dumps(study.to_json()))
    command = [sys.executable, "-m", "tests.study.fakes", str(directory), str(grid)]
    command += [str(num_workers), executor, fault]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as in a terminal
    )


def plant(fault: str) -> None:
    """Make the nth call of a system function that stores files the last one, or the first of a full disk.

    ``"kill:replace:5"`` kills this process when it is about to rename for the fifth time, and
    ``"kill after:replace:5"`` when it has; from ``"full:fsync:5"`` on there is no space. With ``half``
    instead of a function the nth file is cut short before its bytes are on the disk.
    """
    deed, name, number = fault.split(":")
    function = "fsync" if name == "half" else name
    real, calls = getattr(os, function), iter(range(1, int(number)))

    def faulty(*arguments: Any) -> Any:
        if name == "half" and not stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            return real(*arguments)  # a directory
        if next(calls, None) is not None:
            return real(*arguments)
        if name == "half":
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
        elif deed == "kill after":
            real(*arguments)
        if deed != "full":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setattr(os, function, faulty)


def main(directory: str, grid: str, num_workers: str, executor: str, fault: str) -> int:
    # A shell that starts the tests in the background makes its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    study = StudySpec.from_json(json.loads(Path(grid).read_text()))
    if fault:
        plant(fault)
    try:
        outcome = run_study(
            study, Path(directory), execute=EXECUTE, executor=executor, num_workers=int(num_workers)
        )
    except FileError as error:
        print(f"gatework: error: {error}", file=sys.stderr)
        return 2
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
