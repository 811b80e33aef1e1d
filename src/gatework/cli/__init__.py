"""The command line: ``gatework COMMAND``. Each command is one module with ``add_arguments`` and ``run``."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from gatework._version import __version__

#: Commands, what they do, and where they are; a module is imported only when its command runs.
COMMANDS = {
    "compare": (
        "train several token mixers on one task and write a page that compares them",
        "gatework.cli.compare",
    ),
    "list": ("list mixers and tasks", "gatework.cli.list"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0 if all went well, 1 if something failed, 2 if the call was wrong, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if name == "--version":
        print(f"gatework {__version__}")
        return 0
    if name not in COMMANDS:
        from gatework.registry import suggestion

        return _fail(f"{name!r} is no command{suggestion(name, list(COMMANDS))}", code=2)
    summary, module_name = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = ArgumentParser(
        prog=f"gatework {name}", description=summary.capitalize() + ".", exit_on_error=False
    )
    module.add_arguments(parser)
    try:
        code: int = module.run(parser.parse_args(argv[1:]), command=["gatework", *argv])
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except (ArgumentError, TypeError, ValueError, OSError) as error:
        return _fail(str(error), code=2)
    return code


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


def _fail(message: str, *, code: int) -> int:
    """Say what is wrong, in one line."""
    print(f"gatework: error: {' '.join(message.split())}", file=sys.stderr)
    return code
