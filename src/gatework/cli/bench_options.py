"""What the options of all benchmarks share: their spellings, and a short name of what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any


def spellings(name: str) -> list[str]:
    """Return an option by its name, and with hyphens for underscores."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def options_digest(options: Mapping[str, Any]) -> str:
    """Return a short name of the options that results depend on."""
    named = {name: value for name, value in options.items() if name not in ("output", "overwrite")}
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
