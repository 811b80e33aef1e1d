"""``python -m gatework`` is ``gatework``: the entry of the process, where nothing may end in a traceback."""

from __future__ import annotations

import io
import os
import sys


def main() -> int:
    """Run the command line as the one thing that this process does.

    Returns:
        The exit code, see :func:`gatework.cli.main`.
    """
    try:
        from gatework.signals import end_on_interrupt

        end_on_interrupt()
        _open_streams()
        code = _run()
        end_on_interrupt()  # what follows is Python's own end, where an exception would go astray
    except KeyboardInterrupt:
        os.write(2, b"gatework: error: interrupted\n")
        return 130
    return code


def _run() -> int:
    from gatework.cli import flushed
    from gatework.cli import main as run

    try:
        return run()
    except SystemExit as stop:  # --help has printed what there is
        return flushed(stop.code if isinstance(stop.code, int) else 0)


def _open_streams() -> None:
    """Open what the caller has closed (``>&-``), or the first file that is written would take its place."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115 (as long as it lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows: a sign that the encoding lacks becomes a "?"
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
