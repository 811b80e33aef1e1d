"""Which layers of a block write to the residual stream: their initial weights shrink with the depth."""

from __future__ import annotations

from torch import nn

#: Rules by which :func:`residual_outputs` finds them.
RESIDUAL_INITS = ("declared", "zoology")


def residual_outputs(block: nn.Module, rule: str) -> list[nn.Module]:
    """Return the layers of a block that count as writing to the stream by one of :data:`RESIDUAL_INITS`.

    Raises:
        TypeError: If a part of the block declares layers that it does not have.
    """
    if rule == "zoology":
        return _zoology_outputs(block)
    return [output for part in block.children() for output in _declared_outputs(part)]


def _declared_outputs(part: nn.Module) -> list[nn.Module]:
    """The layers that a mixer or channel mixer declares in ``residual_outputs``; other parts declare none."""
    owner, names = type(part).__name__, getattr(part, "residual_outputs", ())
    if isinstance(names, str):
        raise TypeError(f"{owner}.residual_outputs must be a tuple of names, got the string {names!r}")
    modules = dict(part.named_modules(remove_duplicate=False))
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            found = f"of type {type(modules[name]).__name__}" if name in modules else "not a submodule"
            raise TypeError(
                f"{owner}.residual_outputs must name nn.Linear submodules, got {name!r}, which is {found}"
            )
    return [modules[name] for name in names]


def _zoology_outputs(block: nn.Module) -> list[nn.Module]:
    """The modules whose names end in ``out_proj`` or ``fc2``, whatever their output is used for.

    This is the rule of Zoology's code (``_init_weights`` in ``zoology/model.py``), kept for the published
    recipes. It misses output projections of other names, and takes a factor of the gated MLP for its output.
    """
    return [module for name, module in block.named_modules() if name.endswith(("out_proj", "fc2"))]
