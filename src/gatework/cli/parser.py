"""The parser of every command: values by one rule, options under both spellings and once each.

jsonargparse makes the help, reads ``--config`` and gives defaults. Before it sees the words of a command,
``--a-b`` becomes ``--a_b``, an unknown option is refused with the nearest name, one that is given twice too,
and parts of a mapping, such as ``--model.hidden_size``, are set aside, to be put into it at the end.
"""

from __future__ import annotations

import os
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from gatework.checks import suggestion
from gatework.cli.plain_values import (
    MODE,
    OptionError,
    conform,
    holds_mapping,
    holds_options,
    plain,
    read_option,
    value_type,
)
from gatework.yaml_values import read_yaml_file, write_yaml

#: Sections of a study, whose keys are options wherever they stand: in the options of a companion too.
_SECTIONS = ("setting", "training", "model")

_PARSER_KEY = re.compile(r'Parser key "([\w.]+)"')


def spelled(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with underscores for the hyphens in names of options.

    Of ``--section.key``, only the section: what the key is, a label perhaps, the command's parser knows.
    """
    options = _before_end(argv)
    return [*(_spelled(word) if _is_option(word) else word for word in options), *argv[len(options) :]]


class Parser(ArgumentParser):
    """A parser whose options are read as :mod:`gatework.cli.plain_values` says.

    Args:
        **options: Those of jsonargparse's parser.
    """

    def __init__(self, **options: Any) -> None:
        #: Every option by name, with what it holds; None if jsonargparse need not know.
        self.kinds: dict[str, Any] = {"help": None}
        self.repeatable: set[str] = set()
        self.kind_parsers: dict[str, Parser] = {}
        super().__init__(parser_mode=MODE, exit_on_error=False, allow_abbrev=False, **options)
        _read_here(self, self)

    def add_argument_group(self, *arguments: Any, **options: Any) -> Any:
        """Add a group, whose options are read likewise."""
        group = super().add_argument_group(*arguments, **options)
        if hasattr(self, "kinds"):
            _read_here(group, self)
        return group

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """Parse the words of a command.

        Raises:
            OptionError: If an option is unknown, missing or given twice, or its value is of another type.
        """
        words = spelled(args or [])
        chosen = self._chosen(words)
        words, parts = chosen.take_parts(words)
        try:
            found = super().parse_args(words, *others, **options)
        except ArgumentError as error:
            raise _cause(error) or OptionError(_PARSER_KEY.sub(r"--\1", str(error))) from error
        place = found
        if chosen is not self:
            place = found[next(name for name, each in self.kind_parsers.items() if each is chosen)]
        for name, value in parts.items():
            chosen.put(place, name, value)
            chosen.check(place, name.split(".", 1)[0])
        return _plain_namespace(found)

    def parse_path(self, cfg_path: Any, *others: Any, **options: Any) -> Namespace:
        """Read a file of options, which jsonargparse does for ``--config``.

        Raises:
            OptionError: If an option is unknown.
            FileError: If the file cannot be read, or is no mapping.
        """
        path = Path(os.fspath(cfg_path))
        values = read_yaml_file(path)
        if not isinstance(values, Mapping):
            raise OptionError(f"--config {path} must hold a mapping of options, got {values!r:.80}")
        named: dict[str, Any] = {}
        for key, value in values.items():
            name = _underscored(str(key))
            if name in named:
                raise OptionError(f"--config {path} has {name} twice, with hyphens and with underscores")
            named[name] = self._spelled_below(name, value)
        for name in _flat_names(named, self.kinds):
            if name not in self.kinds:
                raise OptionError(f"--config {path} has the option {name!r}, which is none{self._near(name)}")
        found: Namespace = super().parse_string(write_yaml(named), **options)
        return found

    def take_parts(self, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Return the words without the parts of mappings, and these by name, read.

        Raises:
            OptionError: If an option is unknown, given twice, or has no value.
        """
        left: list[str] = []
        parts: dict[str, Any] = {}
        given: list[str] = []
        rest = iter(_before_end(words))
        for word in rest:
            if not _is_option(word):
                left.append(word)
                continue
            written, equals, value = word[2:].partition("=")
            name, is_part = self._name(written)
            if name not in self.repeatable:
                self._check_once(name, given)
                given.append(name)
            if not is_part:
                left.append(f"--{name}{equals}{value}")
                continue
            text = value if equals else next(rest, None)
            if text is None or (not equals and _is_option(text)):
                raise OptionError(f"--{name} must have a value")
            parts[name] = read_option(name, text)
        return [*left, *words[len(_before_end(words)) :]], parts

    def put(self, found: Any, name: str, value: Any) -> None:
        """Put the value of ``--section.key`` into the mapping of its section, the rest of which stays.

        Raises:
            OptionError: If the section is something else by now.
        """
        section, *keys = name.split(".")
        whole = found[section]
        if not isinstance(whole, Mapping) and plain(whole) == self.get_default(section):
            whole = {}
        found[section] = _with_entry(name, whole, keys, value)

    def check(self, found: Any, name: str) -> None:
        """Refuse what has become of an option that has been given in parts."""
        found[name] = conform(name, found[name], self.kinds[name])

    def _chosen(self, words: Sequence[str]) -> Parser:
        """The parser of the kind among the words, such as ``gna`` of ``gatework bench gna``."""
        kind = next((word for word in words if not word.startswith("-")), None)
        return self.kind_parsers.get(kind or "", self)

    def _name(self, written: str) -> tuple[str, bool]:
        """The name of an option, however it is written, and whether it is a part of a mapping."""
        name = _underscored(written)
        if name in self.kinds:
            return name, False
        section, dot, key = written.partition(".")
        section = _underscored(section)
        kind = self.kinds.get(section)
        if not dot or kind is None or not holds_mapping(kind):
            raise OptionError(f"--{name} is no option{self._near(name)}")
        if not key or not all(key.split(".")):
            raise OptionError(f"--{section}. must be followed by the name of an option, got {written!r}")
        return ".".join([section, *_key(key.split("."), are_options=holds_options(kind))]), True

    def _near(self, name: str) -> str:
        return suggestion(f"--{name}", [f"--{known}" for known in self.kinds])

    def _check_once(self, name: str, given: Sequence[str]) -> None:
        """Refuse an option that is given twice, or as a whole and in parts."""
        if name in given:
            raise OptionError(f"--{name} is given twice")
        for other in given:
            if other.startswith(f"{name}.") or name.startswith(f"{other}."):
                raise OptionError(f"--{other} and --{name} give the same option; say it once")

    def _spelled_below(self, name: str, value: Any) -> Any:
        """The value of an option in a file, with underscores in the names of the options that it holds."""
        kind = self.kinds.get(name)
        section = kind is None and any(known.startswith(f"{name}.") for known in self.kinds)
        if not isinstance(value, dict) or not (section or (kind is not None and holds_options(kind))):
            return value
        return _spelled_keys(name, value)


def _read_here(container: Any, parser: Parser) -> None:
    """Let the options that are added to a parser, or to a group of it, be read by our rule."""
    add = container.add_argument

    def add_argument(*names: str, **options: Any) -> Any:
        option = next((name for name in names if name.startswith("--")), None)
        if option is not None:
            name = _underscored(option[2:])
            parser.kinds[name] = options.get("type")
            if options.get("action") in ("append", "config"):
                parser.repeatable.add(name)
            elif "type" in options:
                options["type"] = value_type(name, options["type"])
        return add(*names, **options)

    container.add_argument = add_argument


def _with_entry(name: str, whole: Any, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    if not isinstance(whole, Mapping):
        raise OptionError(f"--{name} names a part of what is no mapping but {plain(whole)!r:.80}")
    key, *below = keys
    old = whole.get(key)
    return {**whole, key: _with_entry(name, {} if old is None else old, below, value)}


def _plain_namespace(found: Namespace) -> Namespace:
    for name in list(vars(found)):
        value = found[name]
        found[name] = _plain_namespace(value) if isinstance(value, Namespace) else plain(value)
    return found


def _cause(error: BaseException | None) -> OptionError | None:
    """Our own error among the causes of one of jsonargparse's."""
    while error is not None and not isinstance(error, OptionError):
        error = getattr(error, "parent", None) or error.__cause__
    return error


def _is_option(word: str) -> bool:
    return word.startswith("--") and len(word) > 2


def _before_end(words: Sequence[str]) -> Sequence[str]:
    """The words before ``--``, after which none is an option."""
    return words[: words.index("--")] if "--" in words else words


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _spelled(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    section, dot, key = name.partition(".")
    return f"--{_underscored(section)}{dot}{key}{equals}{value}"


def _key(parts: Sequence[str], *, are_options: bool) -> Iterable[str]:
    """The parts of a key, spelled with underscores as far as they name options."""
    for part in parts:
        yield _underscored(part) if are_options else part
        are_options = are_options and _underscored(part) in _SECTIONS


def _spelled_keys(name: str, value: Mapping[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, entry in value.items():
        own = _underscored(key) if isinstance(key, str) else key
        if own in found:
            raise OptionError(f"{name}.{own} is given twice, with hyphens and with underscores")
        below = own in _SECTIONS and isinstance(entry, dict)
        found[own] = _spelled_keys(f"{name}.{own}", entry) if below else entry
    return found


def _flat_names(values: Mapping[str, Any], known: Mapping[str, Any]) -> Iterable[str]:
    """The names of the options in a file, those of a section with its name."""
    for name, value in values.items():
        own = [entry for entry in known if entry.startswith(f"{name}.")]
        if own and isinstance(value, Mapping):
            yield from (f"{name}.{key}" for key in value)
        elif not own:
            yield name
        else:
            raise OptionError(f"{name} must be a mapping of options, got {value!r:.80}")
