"""The wheel: pure Python, complete, and at work outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import gatework

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints; a failure shows both of its streams."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (
        f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy of the sources, so that no leftover of an earlier build can slip in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    dist = tmp_path_factory.mktemp("dist")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", str(dist), str(source), cwd=dist)
    (built,) = dist.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a folder; its dependencies come from the running interpreter."""
    target = tmp_path_factory.mktemp("installed")
    run(*PIP, "install", "--no-deps", "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.fixture
def outside(installed: Path, tmp_path: Path):
    """Run Python in an empty folder, with the installed wheel before the checkout on the path."""
    env = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "120"}
    return lambda *arguments: run(sys.executable, *arguments, cwd=tmp_path, env=env)


def test_wheel_is_pure(wheel: Path):
    assert wheel.name == f"gatework-{gatework.__version__}-py3-none-any.whl"


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: Path):
    package = ROOT / "src" / "gatework"
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = {name for name in names if name.startswith(f"gatework-{gatework.__version__}.dist-info/")}
    assert names - metadata == expected
    assert "gatework/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


@pytest.mark.parametrize("folder", ["page/assets", "published", "study/page", "bench/page"])
def test_wheel_carries_the_data(wheel: Path, folder: str):
    names = zipfile.ZipFile(wheel).namelist()
    data = [name for name in names if name.startswith(f"gatework/{folder}/") and not name.endswith(".py")]
    assert data, f"no file of gatework/{folder} in the wheel: see package-data in pyproject.toml"


def test_import_outside_the_checkout(outside, installed: Path):
    where = outside("-c", "import gatework; print(gatework.__file__)").strip()
    assert Path(where).is_relative_to(installed)


def test_command_outside_the_checkout(outside):
    assert "usage: gatework" in outside("-m", "gatework", "--help")
    listing = outside("-m", "gatework", "list")
    missing = [name for name in gatework.list_mixers() if name not in listing]
    assert not missing, f"`gatework list` does not name {missing}"


def test_pages_are_written_from_a_zipped_package(wheel: Path, tmp_path: Path):
    program = (
        "import gatework; from gatework.bench.gna import gna; gna(output='page'); print(gatework.__file__)"
    )
    where = run(sys.executable, "-c", program, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)})
    assert where.strip().startswith(str(wheel))
    assert "<!doctype html>" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


def test_entry_point(installed: Path):
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "gatework = gatework.__main__:main" in entry_points.read_text()


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gatework.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
