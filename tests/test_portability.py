"""Windows and macOS, as far as Linux can tell: a run on a system made to look like one, and the source read.

Only a run on the real systems can show more; see ``tests/elsewhere.py`` for what is made to look like what.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.elsewhere import MODULES, NAMES, environment

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    *sorted((ROOT / "src").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.py")),
    *sorted((ROOT / ".ci").glob("*.py")),
]
#: Files of which every use is behind a question: path below the package -> where it is asked.
ASKED_ELSEWHERE = {"bench/memory.py": "PeakMeter.measure begins with is_available()"}
#: Endings of processes and asking whether they live; on Windows, os.kill does only the first.
PLATFORM_NAMES = {**NAMES, "os": NAMES["os"] | {"kill"}}


def test_everything_works_without_what_posix_alone_has(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.elsewhere_program", str(tmp_path / "work")],
        cwd=ROOT,
        env=environment(tmp_path / "site") | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"after {done.stdout.split()}:\n{done.stderr[-4000:]}"
    assert done.stdout.split() == ["imports", "locks", "study", "training", "memory"]


def test_the_make_believe_takes_away_what_it_says(tmp_path):
    program = (
        "import os\nfrom tests.elsewhere import start\nstart()\n"
        "exec(compile('import os, signal', '', 'exec'), inside := {'__name__': 'gatework.anything'})\n"
        "assert not hasattr(inside['os'], 'fork') and not hasattr(inside['signal'], 'SIGKILL')\n"
        "assert (inside['os'].name, os.name) == ('nt', 'posix')\n"
        "for attempt in ('import fcntl', 'from os import setsid', 'os.kill(os.getpid(), 0)', 'os.fork()'):\n"
        "    try: exec(attempt, inside)\n"
        "    except (ImportError, AttributeError, AssertionError) as error: print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["ModuleNotFoundError", "ImportError", "AssertionError", "AttributeError"]


def problems(path: Path) -> Iterator[str]:
    """What a file relies on that not every system has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = path.is_relative_to(ROOT / "src" / "gatework")
    excused = inside and path.relative_to(ROOT / "src" / "gatework").as_posix() in ASKED_ELSEWHERE
    where = path.relative_to(ROOT).as_posix()
    for node, guarded in walk(tree, guarded=excused):
        for complaint in (only_posix(node, guarded=guarded), text(node), start_method(node)):
            if complaint:
                yield f"{where}:{node.lineno} {complaint}"


def walk(node: ast.AST, *, guarded: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it is reached only after a question about the system."""
    for name, value in ast.iter_fields(node):
        asked = guarded
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            inner = asked or (isinstance(node, ast.If | ast.IfExp) and name != "test" and asks(node.test))
            yield child, inner
            yield from walk(child, guarded=inner)
            if isinstance(child, ast.If) and asks(child.test) and leaves(child.body):
                asked = True  # what comes after it in the same block


def asks(test: ast.expr) -> bool:
    return re.search(r"hasattr\((os|signal|time), |sys\.platform|os\.name", ast.unparse(test)) is not None


def leaves(body: list[ast.stmt]) -> bool:
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue)


def only_posix(node: ast.AST, *, guarded: bool) -> str | None:
    """A name that POSIX alone has, used without asking."""
    used: list[str] = []
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        used = [node.attr] if node.attr in PLATFORM_NAMES.get(node.value.id, ()) else []
    elif isinstance(node, ast.ImportFrom) and node.module in PLATFORM_NAMES:
        used = [alias.name for alias in node.names if alias.name in PLATFORM_NAMES[node.module]]
    elif isinstance(node, ast.Import | ast.ImportFrom):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        used = [name for name in names if name.partition(".")[0] in MODULES]
    return f"uses {', '.join(used)} without asking whether it is there" if used and not guarded else None


def text(node: ast.AST) -> str | None:
    """Text that is read or written in the encoding of the machine."""
    if not isinstance(node, ast.Call):
        return None
    options = {option.arg: option.value for option in node.keywords}
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if name in ("read_text", "write_text"):
        arguments = len(node.args) - (name == "write_text")
        return None if "encoding" in options or arguments > 0 else f"{name} without encoding"
    if owner == "subprocess" and ("text" in options or "universal_newlines" in options):
        return None if "encoding" in options else "text of a subprocess without encoding"
    opens = name == "fdopen" or (name == "open" and not owner) or (name == "open" and owner.endswith("path"))
    if not opens or "encoding" in options:
        return None
    places = node.args[0:1] if owner.endswith("path") else node.args[1:2]
    mode = options.get("mode", places[0] if places else ast.Constant("r"))
    return None if isinstance(mode, ast.Constant) and "b" in mode.value else "opens text without encoding"


def start_method(node: ast.AST) -> str | None:
    """Processes that start as the system likes."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called == "multiprocessing.get_context" and not node.args:
        return "get_context without a start method"
    if re.fullmatch(r"multiprocessing\.(Process|Pool|Queue|SimpleQueue|Manager|Pipe)", called):
        return f"{called} starts processes as the system likes: use get_context('spawn')"
    options = {option.arg for option in node.keywords}
    if called == "DataLoader" and "num_workers" in options and "multiprocessing_context" not in options:
        return "DataLoader without multiprocessing_context"
    return None


def test_sources_ask_before_they_use_what_posix_alone_has():
    found = [problem for path in SOURCES for problem in problems(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ("os.getuid()", 1),
        ("if hasattr(os, 'getuid'):\n    os.getuid()", 0),
        ("x = os.getuid() if hasattr(os, 'getuid') else 0", 0),
        ("def f():\n    if not hasattr(os, 'fork'):\n        return\n    os.fork()", 0),
        ("def f():\n    os.fork()\n    if not hasattr(os, 'fork'):\n        return", 1),
        ("if sys.platform == 'win32':\n    pass\nelse:\n    os.kill(1, 0)", 0),
        ("os.kill(1, 0)\nimport fcntl\nfrom signal import SIGKILL", 3),
        ("open(path)\nopen(path, 'w')\npath.open()\npath.read_text()\npath.write_text(x)", 5),
        ("open(path, 'rb')\npath.open('rb')\nopen(path, encoding='utf-8')\npath.read_text('utf-8')", 0),
        ("subprocess.run(x, text=True)\nsubprocess.run(x, encoding='utf-8')", 1),
        ("multiprocessing.Process()\nmultiprocessing.get_context()\nDataLoader(x, num_workers=2)", 3),
    ],
)
def test_the_reading_finds_what_it_looks_for(source: str, complaints: int):
    found = []
    for node, asked in walk(ast.parse(source), guarded=False):
        found += [only_posix(node, guarded=asked), text(node), start_method(node)]
    assert len([complaint for complaint in found if complaint]) == complaints


def test_file_names_suit_every_file_system():
    names = [
        (path / name).relative_to(ROOT).as_posix()
        for top in ("src", "tests", "docs", "recipes", "benchmarks")
        for path, _, files in ((Path(folder), *rest) for folder, *rest in os.walk(ROOT / top))
        for name in files
        if "_build" not in path.parts and "__pycache__" not in path.parts
    ]
    reserved = re.compile(r"(^|/)(con|prn|aux|nul|com\d|lpt\d)(\.|/|$)|[<>:\"\\|?*]|[ .](/|$)", re.IGNORECASE)
    assert [name for name in names if reserved.search(name)] == []
    assert len({name.lower() for name in names}) == len(names), "names that differ only in case"
    assert max(map(len, names)) < 150  # of the 260 that Windows allows with the folder of the checkout
