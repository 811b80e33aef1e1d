"""The names that ``engine=`` takes: one scheme for every operator that can be computed in several ways.

``"reference"`` is always the definition. Other names say how the same is computed: ``"dense"`` (all pairs),
``"blocked"`` (the tiles that a mask needs), ``"chunked"`` (chunks of a sequence). An ending says with what,
``"blocked-torch"`` with PyTorch's operators, ``"blocked-numba"`` with compiled kernels; without one the
faster of both computes. Kernels with a name of their own keep it: ``"flex"``, ``"triton"``, ``"fla"``,
``"mamba_ssm"``. ``None`` takes the fastest engine that can do what is asked.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Names of earlier versions, and what they are called now; ``"auto"`` was the fastest.
_OLD_NAMES = {"torch": "chunked", "kernels": "chunked-numba"}


def checked_engine(engine: str | None, names: Iterable[str]) -> str | None:
    """Return today's name of an engine, ``None`` for the fastest.

    Args:
        engine: What the caller asked for; an older name where the operator has what it stood for.
        names: The engines of the operator.

    Raises:
        ValueError: If the operator has no such engine.
    """
    known = tuple(names)
    if engine is None or engine in known:
        return engine
    if engine == "auto":
        return None
    for old, new in _OLD_NAMES.items():
        if engine == old and new in known:
            return new
    raise ValueError(f"engine must be one of {', '.join(known)}, got {engine!r}")
