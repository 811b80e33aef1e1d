"""The architecture, read off the source: imports go downward, files and functions are short and explained."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "gatework"

#: The house from the top floor to the ground; names on one line share a floor.
HOUSE = (
    ("cli", "__main__"),
    ("study",),
    ("bench",),
    ("training",),
    ("evaluation",),
    ("tasks",),
    ("data",),
    ("attribution",),
    ("hf", "vision", "natten", "diffusers"),
    ("models",),
    ("checkpoints", "checkpoint_files"),
    ("registry",),
    ("parallel",),
    ("layers",),
    ("layouts",),
    ("ops",),
    ("masks",),
    ("page",),
    ("yaml_values",),
    ("checks", "files", "published", "signals"),
    ("_version", "__init__"),
)
FLOOR = {name: len(HOUSE) - level for level, names in enumerate(HOUSE) for name in names}

#: What stands in a folder that would become a pile: its rooms, and the files that stand loose in it.
ROOMS = {
    "layers": ({"sequence", "vision"}, {"channel_mixers", "gates", "norm", "positions"}),
    "ops": (
        {"attention", "cpu", "recurrence", "sigmoid_attention", "vision"},
        {
            # besides softmax attention itself: blocks that are selected, and what the selection learns from
            *("attention_pooling", "block_sparse_attention", "causal_ranks", "selected_attention"),
            *("long_conv", "short_conv"),
            "feature_maps",
            "engines",
        },
    ),
}

MOST_LINES = 800
#: Files that are longer for a reason: path from the root -> the reason.
LONG_FILES: dict[str, str] = {}

MOST_FUNCTION_LINES = 80

NAMELESS_HOMES = {"util", "utils", "helper", "helpers", "misc", "common"}

#: Folders of one machine, absolute, or beside the checkout. Nothing in the project may depend on them.
FOREIGN_PLACE = re.compile(r"(?<![\w.$}])/(?:home|root|Users|work|workspace)/\w|[.][.]/shared\b")
NOT_OURS = {"build", "dist", "runs", "_build", "__pycache__"}


def ours(*suffixes: str) -> Iterator[Path]:
    """Every file of the project with one of these suffixes; nothing built, installed or linked."""
    for folder, subfolders, files in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in NOT_OURS
            and not name.endswith(".egg-info")
            and (name == ".ci" or not name.startswith("."))
        ]
        for name in files:
            path = Path(folder, name)
            if path.suffix in suffixes and not path.is_symlink():
                yield path


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def report(problems: list[str]) -> None:
    """Fail with one line per problem."""
    if problems:
        pytest.fail("\n".join(sorted(problems)), pytrace=False)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node``, without the bodies of ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for other in child.orelse:
                yield other
                yield from run_time_nodes(other)
        else:
            yield child
            yield from run_time_nodes(child)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything of gatework that a file imports when it runs."""
    parts = ("gatework", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in run_time_nodes(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: -node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"gatework.{alias.name}" for alias in node.names] if module == "gatework" else [module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "gatework":
                yield node.lineno, name


def test_every_module_has_a_floor():
    files, packages = PACKAGE.glob("*.py"), PACKAGE.glob("*/__init__.py")
    homes = {path.stem for path in files} | {path.parent.name for path in packages}
    homeless = sorted(homes - FLOOR.keys())
    assert not homeless, f"gatework.{homeless} has no floor: give it one in DESIGN and in HOUSE of this file"


def drawn_homes() -> list[list[str]]:
    """The house as CONTRIBUTING draws it: a line's names, with what they stand in (``layers/vision``)."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text.split("```\nsrc/gatework/\n", 1)[1].split("\ntests/", 1)[0]
    lines, floor = [], ""
    for line in drawing.splitlines():
        if line.startswith(6 * " "):  # a description goes on
            continue
        names = re.match(r"( +)((?:\w+(?:/|[.]py) )+) ", line)
        assert names, f"the drawing of the house was not understood: {line}"
        homes = [name.removesuffix(".py").removesuffix("/") for name in names[2].split()]
        if len(names[1]) == 2:
            floor = homes[0]
            lines.append(homes)
        else:
            lines.append([f"{floor}/{home}" for home in homes])
    return lines


def test_contributing_draws_the_house():
    drawn = drawn_homes()
    ground = {"_version", "__init__", "__main__"}  # Python's own names: not worth a line
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    homes = (packages | {path.stem for path in PACKAGE.glob("*.py")}) - ground
    rooms = {f"{folder}/{room}" for folder, (rooms, _) in ROOMS.items() for room in rooms}
    names = [name for line in drawn for name in line]
    missing = sorted((homes | rooms) - set(names))
    assert not missing, f"{missing} are not in the drawing of CONTRIBUTING"
    floors = [FLOOR[name] for name in names if "/" not in name]
    assert floors == sorted(floors, reverse=True), "CONTRIBUTING draws the floors in another order than HOUSE"
    unknown = sorted({name for name in names if "/" not in name} - homes)
    assert not unknown, f"{unknown} of the drawing in CONTRIBUTING do not exist"


@pytest.mark.parametrize("folder", ROOMS)
def test_nothing_piles_up(folder):
    rooms, loose = ROOMS[folder]
    found = {path.parent.name for path in (PACKAGE / folder).glob("*/__init__.py")}
    assert found <= rooms, f"{folder}/ has the rooms {sorted(found - rooms)}, which DESIGN does not draw"
    assert rooms <= found, f"{sorted(rooms - found)} of {folder}/ are gone: take them out of ROOMS"
    files = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
    homeless = sorted(files - loose)
    assert not homeless, f"{homeless} stand loose in {folder}/: move them to one of {sorted(rooms)}"


def test_imports_go_downward():
    problems = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, module in imported_modules(path):
            where = f"{shown(path)}:{line} imports {module}"
            home = module.split(".")[1] if "." in module else "__init__"
            if home == "__init__" or home not in FLOOR:
                if module != "gatework.__version__":
                    problems.append(f"{where}: import it from the module that defines it")
            elif FLOOR[home] > FLOOR[own]:
                problems.append(f"{where}: {home} is above {own}; imports go downward only")
    report(problems)


def test_files_are_short():
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ours(".py")}
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    problems = [
        f"{name} has {lines} lines, more than {MOST_LINES}: split it by what its parts do"
        for name, lines in long.items()
        if name not in LONG_FILES
    ]
    problems += [f"{name} is short now: take it out of LONG_FILES" for name in LONG_FILES if name not in long]
    report(problems)


def test_functions_fit_a_screen():
    problems = []
    for path in ours(".py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    where = f"{shown(path)}:{node.lineno} {node.name}"
                    problems.append(f"{where} has {lines} lines, more than {MOST_FUNCTION_LINES}")
    report(problems)


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """Names of the public definitions in ``node``, itself included, that say nothing about themselves."""
    if not ast.get_docstring(node):
        yield name
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inherits_its_text = {ast.unparse(mark).split(".")[-1] for mark in child.decorator_list} & {
                "overload",
                "override",
                "setter",
            }
            if child.name.startswith("_") or inherits_its_text:
                continue
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{name}.{child.name}")
            elif not ast.get_docstring(child):
                yield f"{name}.{child.name}"


def test_everything_public_is_explained():
    problems = []
    for path in PACKAGE.rglob("*.py"):
        problems += [f"{missing} has no docstring" for missing in undocumented(tree(path), shown(path))]
    report(problems)


def test_no_home_is_called_utils():
    nameless = [shown(path) for path in ours(".py") if {path.stem, path.parent.name} & NAMELESS_HOMES]
    assert not nameless, (
        f"{nameless}: put a helper beside what it helps, or in a home named after what it does"
    )


def test_the_project_stands_alone():
    problems = []
    texts = ours(".cff", ".css", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml")
    for path in (ROOT / "Makefile", ROOT / ".ci" / "run", *texts):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := FOREIGN_PLACE.search(line):
                problems.append(f"{shown(path)}:{number} names {found.group()}..., outside the project")
    report(problems)
