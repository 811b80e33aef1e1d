"""What all benchmarks share: a short name of what their options say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any


def options_digest(options: Mapping[str, Any]) -> str:
    """Return a short name of the options that results depend on."""
    named = {name: value for name, value in options.items() if name not in ("output", "overwrite")}
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
