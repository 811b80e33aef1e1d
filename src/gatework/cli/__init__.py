"""The command line: ``gatework COMMAND``. Each command is one module with ``add_arguments`` and ``run``.

``add_arguments`` is also given the words of the command: what can be chosen may depend on the task in them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from errno import EBADF, EIO, ENOSPC
from typing import IO

from jsonargparse import ArgumentParser, Namespace

from gatework._version import __version__
from gatework.checks import suggestion
from gatework.cli.parser import Parser, spelled
from gatework.registry import load_entry_points, load_plugins
from gatework.signals import raise_on_interrupt

#: Commands, what they do, and where they are; a module is imported only when its command runs.
COMMANDS = {
    "compare": (
        "train several mixers or models on one task and write a page that compares them",
        "gatework.cli.compare",
    ),
    "run": ("execute one run of a planned study, as schedulers do", "gatework.cli.run"),
    "report": ("write the page of a study, or of two side by side", "gatework.cli.report"),
    "fit": ("train one model from a recipe", "gatework.cli.fit"),
    "validate": ("score a trained model on validation or test data", "gatework.cli.validate"),
    "predict": ("give the outputs of a trained model", "gatework.cli.predict"),
    "evaluate": ("score language models from anywhere on a text", "gatework.cli.evaluate"),
    "bench": ("measure operators on this machine, checked before they are timed", "gatework.cli.bench"),
    "convert": ("bring weights of another layout to ours", "gatework.cli.convert"),
    "list": ("list mixers, models and tasks", "gatework.cli.list"),
}
#: Options that are places to write, whose names begin the errors about them.
_PLACES = ("output", "json")
_WITH_PLUGINS = {"compare", "run", "report", "fit", "validate", "predict", "evaluate", "convert", "list"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 if all went well, 1 if something failed, 2 if the call was wrong, 130 after Ctrl-C.
    """
    argv = [*(sys.argv[1:] if argv is None else argv)]  # `list` may be the module of that command by now
    try:
        code = _run(argv)
        return flushed(code)
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:  # whoever read what was printed has had enough, as `| head` does
        _discard(sys.stdout)
        return 0 if argv[:1] in ([], ["list"]) else 128 + 13  # of work, a part is missing
    except (ArgumentError, TypeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (ENOSPC, EIO, EBADF):
            _discard(sys.stdout)  # a file of ours has a name
            return _fail(f"cannot write to standard output: {error.strerror}", code=1)
        return _fail(_as_written(str(error), argv), code=2)


def _run(argv: list[str]) -> int:
    """Run one command; what is wrong with the call is raised."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if name == "--version":
        print(f"gatework {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail(f"{name!r} is no command{suggestion(name, [*COMMANDS])}", code=2)
    summary, module_name = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f"gatework {name}", description=summary.capitalize() + ".")
    words = spelled(argv[1:])
    plugins = _load_named_plugins(words) if name in _WITH_PLUGINS else []
    if name == "list":
        load_entry_points()
    module.add_arguments(parser, words)
    arguments = parser.parse_args(words)
    if plugins != _plugins_in(arguments):
        raise ValueError("plugin runs code: name it on the command line with --plugin, never in a file")
    _check_places(arguments)
    raise_on_interrupt()
    code: int = module.run(arguments, command=["gatework", *argv])
    return code


def add_plugin_argument(parser: ArgumentParser) -> None:
    """Add ``--plugin``, which :func:`main` acts on before the other arguments are read."""
    parser.add_argument(
        "--plugin",
        type=str,
        action="append",
        default=[],
        help="module that registers mixers or tasks of your own; may be repeated",
    )


def _load_named_plugins(argv: Sequence[str]) -> list[str]:
    """Load the plugins among the arguments, so that their names can be used in all the others."""
    plugins = [
        argv[index + 1] if word == "--plugin" else word.removeprefix("--plugin=")
        for index, word in enumerate(argv)
        if word.startswith("--plugin=") or (word == "--plugin" and index + 1 < len(argv))
    ]
    load_plugins(plugins)
    return plugins


def _plugins_in(arguments: Namespace) -> object:
    """What was read as plugins, of the command or of the kind of it that was chosen."""
    chosen = arguments.get(arguments.get("kind") or "")
    return (chosen if isinstance(chosen, Namespace) else arguments).get("plugin") or []


def _check_places(arguments: Namespace) -> None:
    """Refuse a place to write without a name, which would be taken for none and become the default."""
    for name, value in vars(arguments.as_flat()).items():
        if name.split(".")[-1] in _PLACES and value is not None and not str(value).strip():
            raise ValueError(f"--{name.split('.')[-1]} must be a path, got {value!r}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gatework COMMAND [options]",
            "",
            "Which token mixer should I use here, and what do I gain and lose?",
            "",
            *lines,
            "",
            "`gatework COMMAND --help` shows the options of a command, `gatework --version` the version.",
        ]
    )


def _as_written(message: str, words: Sequence[str]) -> str:
    """An error about ``output`` or ``model.hidden_size``, with its hyphens if it was given as an option."""
    for word in words:
        name = word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else ""
        if "." in name or name in _PLACES or message.startswith(f"{name} must "):
            message = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.])", f"--{name}", message, count=1)
    return message


def _fail(message: str, *, code: int) -> int:
    """Say what is wrong, in one line."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody is there to be told
            print(f"gatework: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def flushed(code: int) -> int:
    """Bring what was printed to whoever reads it, now: when Python ends, an error would be a traceback.

    Args:
        code: The exit code so far.

    Returns:
        The exit code, 1 in place of 0 if it could not be written. A reader who has had enough is no error.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
    except OSError as error:
        _discard(sys.stdout)
        return _fail(f"cannot write to standard output: {error.strerror or error}", code=code or 1)
    return code


def _discard(stream: IO[str]) -> None:
    """Send what is still to be written to nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
