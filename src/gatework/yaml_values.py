"""How a text becomes a value, in files and on the command line alike: the core schema of YAML 1.2.

``1e-6``, ``.5`` and ``1.`` are numbers, ``010`` is ten, ``0o17`` and ``0x1F`` are octal and hexadecimal, and
only ``true`` and ``false`` are truth values: ``yes``, ``on``, ``1_000``, ``2024-01-01`` and ``12:30:00`` are
texts. (PyYAML itself reads YAML 1.1, which decides otherwise in each of these.) Nothing but null, truth
values, numbers, texts, lists and mappings is ever made, a mapping has every key once, and ``<<`` merges
nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gatework.files import FileError

#: Larger texts are no options: 1 MiB.
MAX_BYTES = 2**20
MAX_DEPTH = 50
#: Values that a text may hold, what is repeated by ``*alias`` counted each time.
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
#: Kind of a plain scalar: how it is written, and the characters that it may begin with.
_SCHEMA = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.")),
)
_PATTERNS = [(kind, re.compile(rf"{pattern}\Z"), first) for kind, pattern, first in _SCHEMA]

_BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")


class YamlError(ValueError):
    """A text is no valid YAML, or holds something that no option can be; one line that says where.

    Attributes:
        is_syntax: Whether it is no YAML at all, as a text may be that begins with a sign of YAML's.
    """

    def __init__(self, message: str, *, is_syntax: bool = False) -> None:
        super().__init__(message)
        self.is_syntax = is_syntax


def read_yaml(text: str, source: str = "") -> Any:
    """Return the value that a text says.

    Args:
        text: One YAML document.
        source: What errors call it, such as a path.

    Raises:
        YamlError: If it is no valid YAML, has a key twice, a tag of a class, a merge key, a number that no
            float can hold, an alias of what it is part of, or more than :data:`MAX_BYTES`,
            :data:`MAX_DEPTH` or :data:`MAX_VALUES`.
    """
    try:
        if len(text.encode()) > MAX_BYTES:
            raise YamlError(f"it is larger than {MAX_BYTES >> 20} MiB")
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(_with(source, _one_line(error)), is_syntax=True) from error
    except UnicodeEncodeError as error:
        raise YamlError(_with(source, "it is no valid Unicode")) from error
    except YamlError as error:
        if source:
            raise YamlError(_with(source, str(error))) from error
        raise


def read_yaml_file(path: Path) -> Any:
    """Return the value that a file says.

    Raises:
        FileError: If it cannot be read or is not as :func:`read_yaml` wants it; the message names the file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return read_yaml(data.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not valid YAML: it is no text in UTF-8") from error
    except YamlError as error:
        raise FileError(f"{error}") from error


def write_yaml(value: Any) -> str:
    """Return the text of a value; :func:`read_yaml` gives an equal one, tuples as lists.

    Texts that any reader of YAML, of version 1.1 or 1.2, could take for something else are quoted.

    Raises:
        TypeError: If something in it is neither null, bool, number, text, list nor mapping.
    """
    try:
        written = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise TypeError(f"no YAML option can hold it: {_one_line(error)}") from error
    assert isinstance(written, str)
    return written


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # (one of two classes)
    """Makes the values of the core schema, and nothing else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)
    yaml_constructors: dict[Any, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = True) -> dict[Any, Any]:
        """Return a mapping, refusing a key that it has twice."""
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, list | dict):
                raise YamlError(f"line {line}: a key must be one word, got {key!r:.80}")
            if key == "<<" and key_node.style in (None, ""):
                raise YamlError(f"line {line}: '<<' merges nothing here; write the keys out")
            if key in found:
                raise YamlError(f"line {line}: key {key!r} is there twice")
            found[key] = self.construct_object(value_node, deep=True)
        return found

    def construct_list(self, node: Any) -> list[Any]:
        """Return a list."""
        return [self.construct_object(entry, deep=True) for entry in node.value]

    def construct_number(self, node: Any) -> int | float:
        """Return a number as the core schema writes it."""
        text = self.construct_scalar(node)
        kind = node.tag.removeprefix(_TAG)
        if not any(pattern.match(text) for name, pattern, _ in _PATTERNS if name in ("int", kind)):
            raise YamlError(f"line {node.start_mark.line + 1}: {text!r:.80} is not of type {kind}")
        try:
            return _integer(text) if kind == "int" else _float(text)
        except ValueError as error:
            raise YamlError(f"line {node.start_mark.line + 1}: {error}") from error

    def construct_word(self, node: Any) -> bool | None:
        """Return null, true or false."""
        text, kind = self.construct_scalar(node), node.tag.removeprefix(_TAG)
        if not any(pattern.match(text) for name, pattern, _ in _PATTERNS if name == kind):
            raise YamlError(f"line {node.start_mark.line + 1}: {text!r:.80} is not of type {kind}")
        return None if kind == "null" else text.lower() == "true"

    def refuse(self, node: Any) -> Any:
        """Refuse a tag that means more than a value."""
        raise YamlError(f"line {node.start_mark.line + 1}: tag {node.tag!r:.80} is not allowed")


_Loader.add_constructor(_TAG + "map", _Loader.construct_mapping)
_Loader.add_constructor(_TAG + "seq", _Loader.construct_list)
_Loader.add_constructor(_TAG + "str", _Loader.construct_scalar)
for _kind in ("int", "float"):
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_number)
for _kind in ("null", "bool"):
    _Loader.add_constructor(_TAG + _kind, _Loader.construct_word)
_Loader.add_constructor(None, _Loader.refuse)


class _Dumper(yaml.SafeDumper):
    """Writes what neither YAML 1.1 nor 1.2 can take for something else, and repeats instead of naming."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True

    def represent_text(self, data: str) -> Any:
        """Write a text, with escapes if it has line breaks that YAML would fold."""
        style = '"' if _BREAKS.search(data) else None
        return self.represent_scalar(_TAG + "str", str(data), style=style)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_multi_representer(str, _Dumper.represent_text)
for _kind, _pattern, _first in _PATTERNS:
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, _pattern, _first)


def _integer(text: str) -> int:
    try:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError:  # Python reads no number of thousands of digits
        raise ValueError(f"number {text[:20]}... has too many digits") from None


def _float(text: str) -> float:
    name = text.lower()
    if name.endswith((".inf", ".nan")):
        return float(name.replace(".", ""))
    value = float(_integer(text) if text[:2] in ("0o", "0x") else text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text:.20} is beyond what a float can hold; infinity is written .inf")
    return value


def _check_depth(text: str) -> None:
    """Refuse deep nesting before anything follows it down."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark: Any = event.start_mark
                raise YamlError(f"line {mark.line + 1}: it is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _count(node: Any, counted: dict[int, int | None], depth: int = 0) -> int:
    """Return how many values a node stands for, and refuse too many, or one that holds itself."""
    line = node.start_mark.line + 1
    known = counted.get(id(node), 0)
    if known is None or depth > MAX_DEPTH:
        raise YamlError(f"line {line}: an alias stands for what it is a part of, or nests too deeply")
    if known:
        return known
    counted[id(node)] = None
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count(child, counted, depth + 1) for child in children)
    if total > MAX_VALUES:
        raise YamlError(f"line {line}: it stands for more than {MAX_VALUES:,} values")
    counted[id(node)] = total
    return total


def _one_line(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if getattr(error, "context", None) == "expected a single document in the stream":
        problem = "there is a second document, and only one can be read"
    text = " ".join(str(problem or error).split())
    return text if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {text}"


def _with(source: str, text: str) -> str:
    return f"{source} is not valid YAML: {text}" if source else text
