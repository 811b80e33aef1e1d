"""The names that ``engine=`` takes, and where each engine has been tried: one scheme for every operator.

``"reference"`` is always the definition. Other names say how the same is computed: ``"dense"`` (all pairs),
``"blocked"`` (the tiles that a mask needs), ``"chunked"`` (chunks of a sequence). An ending says with what,
``"blocked-torch"`` with PyTorch's operators, ``"blocked-numba"`` with compiled kernels; without one the
faster of both computes. Kernels with a name of their own keep it: ``"flex"``, ``"triton"``, ``"fla"``,
``"mamba_ssm"``, ``"natten"``. ``None`` takes the fastest engine that can do what is asked, of those that
:func:`may_be_chosen` on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gatework.checks import check_choice

#: Names of earlier versions, and what they are called now; ``"auto"`` was the fastest.
_OLD_NAMES = {"torch": "chunked", "kernels": "chunked-numba"}

#: Engines that are made of PyTorch's operators, and so compute wherever PyTorch does (those in tiles keep to
#: the CPU by refusing other devices).
OF_TORCH = frozenset(
    {"reference", "dense", "blocked", "blocked-torch", "chunked", "chunked-torch", "gatework"}
)

_EVERY_RUN = {"cpu": "yes"}

#: Where the suite of outputs and gradients of each engine has passed, and what of it: on the devices "cpu"
#: (in every run of the tests) and "cuda", in Triton's "interpreter", or only compiled to a "cubin", not run.
#: After a run of `make test-gpu` the engines that passed get a "cuda" with GPU and version of PyTorch, which
#: is all that makes them the default there; docs/engines.md shows this table.
TRIED: dict[str, dict[str, dict[str, str]]] = {
    "attention": {
        "reference": _EVERY_RUN,
        "dense": _EVERY_RUN,
        "blocked": _EVERY_RUN,
        "blocked-torch": _EVERY_RUN,
        "blocked-numba": _EVERY_RUN,
        "flex": {"cpu": "outputs"},
    },
    "sigmoid_attention": {
        "reference": _EVERY_RUN,
        "dense": _EVERY_RUN,
        "blocked": _EVERY_RUN,
        "blocked-torch": _EVERY_RUN,
        "blocked-numba": _EVERY_RUN,
        "triton": {"interpreter": "yes", "cubin": "sm_80, sm_90"},
    },
    "gated_linear_attention": {"reference": _EVERY_RUN, "chunked": _EVERY_RUN, "fla": {}},
    "delta_rule": {"reference": _EVERY_RUN, "chunked": _EVERY_RUN, "fla": {}},
    "low_rank_recurrence": {"reference": _EVERY_RUN, "chunked": _EVERY_RUN, "fla": {}},
    "selective_scan": {
        "reference": _EVERY_RUN,
        "chunked": _EVERY_RUN,
        "chunked-torch": _EVERY_RUN,
        "chunked-numba": _EVERY_RUN,
        "mamba_ssm": {},
    },
    "wkv": {
        "reference": _EVERY_RUN,
        "chunked": _EVERY_RUN,
        "chunked-torch": _EVERY_RUN,
        "chunked-numba": _EVERY_RUN,
    },
    "neighborhood_attention": {"gatework": _EVERY_RUN, "natten": {}},
}


def may_be_chosen(operator: str, engine: str, device: torch.device) -> bool:
    """Tell whether ``engine=None`` may mean an engine on a device.

    It may if the engine is made of PyTorch's operators, or its suite has passed on such a device
    (:data:`TRIED`). By name every engine can be asked for.

    Args:
        operator: A key of :data:`TRIED`.
        engine: One of its engines.
        device: Where the tensors are.

    Raises:
        KeyError: If the table has no such operator or engine.
    """
    tried = TRIED[operator][engine]
    return engine in OF_TORCH or device.type in tried


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
    return check_choice("engine", engine, known)
