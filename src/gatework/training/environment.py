"""What numbers were made with, as results state it."""

from __future__ import annotations

import platform
from typing import Any

import lightning
import torch

from gatework import __version__


def environment() -> dict[str, Any]:
    """Return the versions, the platform and the number of threads of this process."""
    return {
        "gatework": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
