"""What :mod:`tests.test_portability` does on a system like Windows: import, compare, train, resume, lock.

Every check prints a line; what fails raises.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def imports() -> None:
    import gatework

    def modules(package):
        for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            if not found.name.endswith(".__main__"):
                module = importlib.import_module(found.name)
                yield found.name
                if found.ispkg:
                    yield from modules(module)

    assert sum(1 for _ in modules(gatework)) > 100
    files = sys.modules["gatework.files"]
    assert (files.os.name, files.sys.platform) == ("nt", "win32")  # the make-believe works
    assert not hasattr(files.os, "fork")
    assert os.name == "posix"


def locks(folder: Path) -> None:
    from gatework.files import DirectoryInUseError, exclusive, remove_leftovers, temporary_beside

    folder.mkdir()
    own = temporary_beside(folder / "a.json")
    names = [own.name.replace(f".{os.getpid()}.", f".{process}.") for process in (os.getppid(), 2**22 + 1)]
    for name in names:
        (folder / name).touch()
    remove_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == names[:1], (
        "only the temporary file of a living process"
    )
    program = (
        "import sys; from pathlib import Path; from gatework.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with exclusive(folder):
        with pytest.raises(DirectoryInUseError, match="this one"), exclusive(folder):
            pass
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} is already working in {folder}" in refused.stderr, refused.stderr
    subprocess.run(command, check=True)


def study(folder: Path) -> None:
    from gatework.study import run_study
    from gatework.study.results import ResultStore
    from tests.study.fakes import EXECUTE, make_study

    folder.mkdir()
    fake = make_study(folder / "traces", seeds=[0, 1, 2], deeds=("finish", "leave"), seconds=0.0)
    outcome = run_study(fake, folder / "study", execute=EXECUTE, num_workers=2, progress=False)
    assert (outcome.finished, outcome.failed, outcome.exit_code) == (3, 3, 1)
    messages = {result["message"] for result in ResultStore(folder / "study").read_all().values()}
    assert messages == {None, "worker died: exit code 3"}


def training(folder: Path) -> None:
    from gatework import tasks
    from tests.training.runs import NoisyRecall, NoisyRows, contents, differing, fit, recipe

    tasks.TASKS["noisy"] = NoisyRecall
    whole = recipe(steps=6, training={"evaluations": 1})
    assert fit(whole, folder / "whole") == 0
    taken, read = [], NoisyRows.__getitem__

    def interrupted(rows, index):
        taken.append(index)
        if len(taken) == 30:
            signal.raise_signal(signal.SIGINT)
        return read(rows, index)

    NoisyRows.__getitem__ = interrupted
    assert fit(whole, folder / "stopped") == 128 + signal.SIGINT
    NoisyRows.__getitem__ = read
    with_worker = recipe(steps=6, training={"evaluations": 1}, trainer={"num_workers": 1})
    assert fit(with_worker, folder / "stopped") == 0  # a new interpreter loads the rest
    found = [contents(folder / name) for name in ("whole", "stopped")]
    assert [name for name in differing(*found) if not name.startswith(".recipe")] == []


def memory() -> None:
    from gatework.bench.memory import PeakMeter

    with PeakMeter("nowhere:prepare", num_threads=1) as meter:
        assert meter.measure({}) == (None, "peak memory can only be measured on Linux")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for check in (imports, locks, study, training, memory):
        check(place / check.__name__) if check.__code__.co_argcount else check()
        print(check.__name__, flush=True)
