"""A directory of measurements: the options they belong to, and one file per finished cell, never half."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatework.files import FileError, exclusive, read_json, remove_leftovers, write_json

BENCH_FORMAT = "gatework.bench/1"
CELL_FORMAT = "gatework.bench.cell/1"
BENCH_FILE = "bench.json"
_REMEDY = "restore it from a copy, or delete it to have it measured again"
_KEYS = {"format", "id", "cell", "status", "reason"}


class BenchStore:
    """The files of one benchmark.

    Args:
        directory: Where they are.
        kind: What is measured, such as ``"attention"``.
    """

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.cells = directory / "cells"

    @contextmanager
    def opened(self, options: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Hold the directory for measurements with these options; no other process may until the end.

        Args:
            options: What the measurements depend on, as JSON; it must equal what is stored.
            overwrite: Delete what is stored instead.

        Raises:
            FileError: If the directory belongs to other options or to something else, or is in use.
        """
        _make_directory(self.directory)
        with exclusive(self.directory):
            stored = self.directory / BENCH_FILE
            if stored.exists() and overwrite:
                self._clear()
            elif stored.exists():
                self._check(options)
            else:
                self._check_free()
            _make_directory(self.cells)
            for folder in (self.directory, self.cells):
                remove_leftovers(folder)
            write_json(stored, {"format": BENCH_FORMAT, "kind": self.kind, "options": dict(options)})
            yield

    def options(self) -> dict[str, Any]:
        """Return the options of the stored measurements.

        Raises:
            FileError: If there are none, or they are broken or of another kind.
        """
        path = self.directory / BENCH_FILE
        if not path.exists():
            raise FileError(f"{self.directory} holds no benchmark: it has no {BENCH_FILE}")
        found = read_json(path, remedy="choose another directory, or overwrite it")
        if found.get("format") != BENCH_FORMAT or not isinstance(found.get("options"), dict):
            raise FileError(f"{path} must have format {BENCH_FORMAT!r}, got {found.get('format')!r:.80}")
        if found.get("kind") != self.kind:
            raise FileError(f"{path} is a benchmark of {found.get('kind')!r:.80}, not of {self.kind!r}")
        return dict(found["options"])

    def write(self, record: Mapping[str, Any]) -> None:
        """Store one finished cell.

        Raises:
            FileError: If it cannot be written; what was stored before is then still there.
        """
        write_json(self.cells / f"{record['id']}.json", {"format": CELL_FORMAT, **record})

    def read_all(self) -> dict[str, dict[str, Any]]:
        """Return every stored cell by its id.

        Raises:
            FileError: If one of the files is broken or foreign: none is ever skipped.
        """
        return {path.stem: _read_cell(path) for path in sorted(self.cells.glob("*.json"))}

    def _check(self, options: Mapping[str, Any]) -> None:
        stored = self.options()
        names = [name for name in {**stored, **options} if stored.get(name) != options.get(name)]
        if names:
            changes = "; ".join(
                f"{name} is {_short(options.get(name))}, there {_short(stored.get(name))}" for name in names
            )
            raise FileError(
                f"{self.directory} holds measurements with other options ({changes}); choose another "
                "output, or overwrite it (--overwrite), which deletes them"
            )

    def _check_free(self) -> None:
        foreign = sorted(path.name for path in self.directory.iterdir() if not path.name.startswith("."))
        if foreign:
            raise FileError(
                f"{self.directory} holds other files ({', '.join(foreign[:3])}) and no benchmark; "
                "choose another output"
            )

    def _clear(self) -> None:
        for path in self.cells.glob("*.json"):
            path.unlink()


def slug(text: str, most: int = 60) -> str:
    """Return a text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:most].strip("-.")


def _read_cell(path: Path) -> dict[str, Any]:
    record = read_json(path, remedy=_REMEDY)
    if record.get("format") != CELL_FORMAT:
        raise FileError(
            f"{path} must have format {CELL_FORMAT!r}, got {record.get('format')!r:.80}; {_REMEDY}"
        )
    if missing := sorted(_KEYS - set(record)):
        raise FileError(f"{path} lacks {', '.join(missing)}; {_REMEDY}")
    if record["id"] != path.stem or not isinstance(record["cell"], dict):
        raise FileError(f"{path} is the measurement of another cell, {record['id']!r:.80}; {_REMEDY}")
    return record


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make {directory}: {error.strerror or error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
