"""What measurements were made with, as they state it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gatework import __version__


def environment() -> dict[str, Any]:
    """Return the versions, the processor and the number of threads of this process."""
    return {
        "gatework": __version__,
        "torch": torch.__version__,
        "numba": numba_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def numba_version() -> str | None:
    """Return the version of numba; ``None`` if it is not installed. Does not import it."""
    try:
        return version("numba")
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the name of the processor, as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def total_memory() -> int:
    """Return the bytes of memory of this machine; 8 GiB where the system does not say."""
    try:
        if hasattr(os, "sysconf"):
            return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError):
        pass
    return 8 * 2**30
