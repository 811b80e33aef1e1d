"""What every engine of every operator is asked for on a device, and how far it may be from the definition.

The tests of a GPU (``tests/gpu``) and ``benchmarks/gpu.py`` share these cases: masks, heads of keys that
query heads share, lengths of 0, 1, odd ones and those of several blocks. The definition computes on the CPU
in float64, from the numbers that the engine is given in its precision: what is compared is the engine alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gatework import masks, ops
from gatework.masks import BlockSparse, Causal, CausalDocument, Neighborhood, PrefixLM, SlidingWindow
from gatework.ops.engines import TRIED
from gatework.ops.selected_attention import selected_attention, selected_attention_reference
from gatework.ops.vision import neighborhood

Tensors = dict[str, Tensor]
Call = Callable[[Tensors, str | None], tuple[Tensor, ...]]

#: How far outputs and gradients may lie from the definition, as a share of its largest number.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 5e-4),
    torch.float16: (5e-3, 1e-2),
    torch.bfloat16: (2e-2, 4e-2),
}
#: Where an engine's documentation says that it computes with fewer digits: fla multiplies float32 as TF32.
LOOSER = {("fla", torch.float32): (1e-2, 2e-2)}
#: For operators without engines: what computes them, with PyTorch's operators.
ALONE = "torch"


class Case(NamedTuple):
    """One call of an operator, of any of its engines.

    Attributes:
        operator: What engines are listed for in :data:`gatework.ops.engines.TRIED`, or a name of its own.
        name: Says what is asked for.
        draw: Makes the inputs in float64.
        call: Computes the outputs with an engine; ``"reference"`` is the definition.
        is_core: Whether it is among the few that slow compilers and every dtype are tried on.
    """

    operator: str
    name: str
    draw: Callable[[torch.Generator], Tensors]
    call: Call
    is_core: bool = False

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines of the operator besides the definition, which is computed on the CPU."""
        return tuple(TRIED.get(self.operator, (ALONE,)))


class RefusedError(Exception):
    """An engine is not installed, or says that it cannot do what is asked."""


def engines_on(case: Case, device: str) -> list[str]:
    """The engines to try on a kind of device: not those that say of themselves that they are for the CPU."""
    for_cpu = {"blocked", "blocked-torch"}
    return [
        engine
        for engine in case.engines
        if device == "cpu" or not (engine in for_cpu or engine.endswith("-numba"))
        if not (engine == "fla" and "no token" in case.name)  # answered before it is asked
    ]


def results(
    case: Case, engine: str | None, tensors: Tensors, *, gradients: bool = True
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of the inputs by name for a fixed weighting of the outputs.

    Raises:
        RefusedError: If the engine refuses the call.
    """
    leaves = {
        name: tensor.detach().requires_grad_(gradients and tensor.is_floating_point())
        for name, tensor in tensors.items()
    }
    try:
        with torch.set_grad_enabled(gradients):
            outputs = [y for y in case.call(leaves, engine) if y is not None]
    except (ValueError, ImportError) as error:
        if engine is None or not str(error).startswith((f"engine {engine!r}", f"backend {engine!r}")):
            raise
        raise RefusedError(str(error)) from error
    if not gradients:
        return outputs, {}
    gen = torch.Generator().manual_seed(1)
    # Only the first: some engines give no gradient of a state or a log-sum-exp.
    weights = torch.randn(outputs[0].shape, generator=gen, dtype=torch.float64)
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(
        outputs[0],
        list(wanted.values()),
        weights.to(outputs[0]),
        allow_unused=True,
        materialize_grads=True,
    )
    return outputs, dict(zip(wanted, found, strict=True))


def difference(
    case: Case, engine: str | None, device: str, dtype: torch.dtype, *, gradients: bool = True
) -> tuple[float, float]:
    """How far outputs and gradients lie from the definition, as a share of its largest number.

    A number that is not finite counts as infinitely far.

    Raises:
        RefusedError: If the engine refuses the call.
        AssertionError: If an output is on another device, or has another shape.
    """
    gen = torch.Generator().manual_seed(0)
    given = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in case.draw(gen).items()
    }
    moved = {name: tensor.to(device) for name, tensor in given.items()}
    ours, our_grads = results(case, engine, moved, gradients=gradients)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
    right, right_grads = results(case, "reference", wide, gradients=gradients)
    assert all(y.device.type == torch.device(device).type for y in ours), "an output is on another device"
    grads = [our_grads[name] for name in right_grads]
    return farthest(ours, right), farthest(grads, list(right_grads.values()))


def dtypes_of(case: Case, engine: str | None) -> list[torch.dtype]:
    """The dtypes to try: float16 in some cases only, halves not where every step would round to them."""
    if engine == "reference":
        return [torch.float64, torch.float32]
    return [dtype for dtype in TOLERANCES if dtype != torch.float16 or case.is_core]


def tolerance(engine: str | None, dtype: torch.dtype) -> tuple[float, float]:
    """How far outputs and gradients of an engine may lie from the definition."""
    return LOOSER.get((engine or "", dtype), TOLERANCES[dtype])


def farthest(ours: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest of the errors of some tensors, each as a share of the largest right number in it."""
    largest = [_largest(x.detach()) for x in right]
    # What is zero but for rounding has no size of its own: it is seen beside the others.
    least = max([1e-2 * most for most in largest], default=0.0) or 1e-3
    return max(
        (_error(y, x) / max(most, least) for y, x, most in zip(ours, right, largest, strict=True)),
        default=0.0,
    )


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _error(ours: Tensor, right: Tensor) -> float:
    assert ours.shape == right.shape, f"{tuple(ours.shape)} instead of {tuple(right.shape)}"
    ours, right = ours.detach().cpu().double(), right.detach().double()
    infinite = torch.isinf(right)  # the log-sum-exp of nothing
    if not torch.equal(ours[infinite], right[infinite]) or not ours[~infinite].isfinite().all():
        return float("inf")
    return _largest((ours - right)[~infinite])


# --- attention ---


def _normal(gen: torch.Generator, **shapes: tuple[int, ...]) -> Tensors:
    return {name: torch.randn(shape, generator=gen, dtype=torch.float64) for name, shape in shapes.items()}


def _qkv(
    gen: torch.Generator,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    q_length: int = 300,
    kv_length: int | None = None,
    head_dim: int = 32,
    **more: tuple[int, ...],
) -> Tensors:
    keys = (batch, kv_heads, q_length if kv_length is None else kv_length, head_dim)
    return _normal(gen, q=(batch, heads, q_length, head_dim), k=keys, v=keys, **more)


def _attend(tensors: Tensors, engine: str | None, **options: Any) -> tuple[Tensor, ...]:
    y = ops.attention(**tensors, **options, engine=engine)
    return y if isinstance(y, tuple) else (y,)


def _sigmoid(tensors: Tensors, engine: str | None, **options: Any) -> tuple[Tensor, ...]:
    return (ops.sigmoid_attention(**tensors, **options, engine=engine),)


def _table(length: int, gen: torch.Generator) -> Tensor:
    return torch.rand(length, length, generator=gen) > 0.5


def _block_sparse(length: int, size: int) -> BlockSparse:
    blocks = -(-length // size)
    table = torch.rand(2, 4, blocks, blocks, generator=torch.Generator().manual_seed(2)) > 0.5
    return BlockSparse.from_map(table, size, q_length=length, kv_length=length)


#: Masks that both kinds of attention are asked for, by name, with their lengths.
MASKS: Mapping[str, tuple[masks.Mask | None, dict[str, int]]] = {
    "all pairs": (None, {}),
    "causal": (Causal(), {}),
    "causal, one head of keys": (Causal(), {"kv_heads": 1}),
    "causal, 1 token": (Causal(), {"q_length": 1}),
    "causal, 37 tokens of 40 channels": (Causal(), {"q_length": 37, "head_dim": 40}),
    "no token": (Causal(), {"q_length": 0}),
    "no key": (SlidingWindow(5, 5), {"q_length": 7, "kv_length": 0}),
    "no sequence": (Causal(), {"batch": 0}),
    "window": (SlidingWindow(60, 3), {}),
    "documents": (CausalDocument([1, 210, 89]), {}),
    "prefix": (PrefixLM(100), {}),
    "neighbourhood": (Neighborhood((15, 20), (5, 7)), {}),
    "blocks of 128": (_block_sparse(300, 128), {}),
    "causal and a window of earlier queries": (
        (Causal() & SlidingWindow(40, 0)).with_query_offset(-30),
        {"q_length": 100, "kv_length": 130},
    ),
    "decoding": (Causal().with_query_offset(130), {"q_length": 1, "kv_length": 131}),
}
_CORE = {"causal", "window", "documents", "causal, 37 tokens of 40 channels"}


def _attention_cases() -> list[Case]:
    found = [
        Case("attention", name, partial(_qkv, **sizes), partial(_attend, mask=mask), name in _CORE)
        for name, (mask, sizes) in MASKS.items()
    ]
    with_table = lambda gen: _qkv(gen) | {"mask": _table(300, gen)}  # noqa: E731
    causal = partial(_attend, mask=Causal())
    alibi = ops.Alibi.for_heads(4)
    return [
        *found,
        Case("attention", "booleans", with_table, _attend),
        Case("attention", "bias", partial(_qkv, bias=(4, 300, 300)), causal),
        Case("attention", "ALiBi", _qkv, partial(causal, bias=alibi)),
        Case("attention", "soft cap", _qkv, partial(causal, softcap=2.0)),
        Case("attention", "sinks", partial(_qkv, sinks=(4,)), causal, is_core=True),
        Case("attention", "log-sum-exp", _qkv, partial(causal, return_lse=True)),
        Case("attention", "negative scale", _qkv, partial(_attend, mask=SlidingWindow(60, 3), scale=-0.3)),
    ]


def _sigmoid_cases() -> list[Case]:
    found = [
        Case("sigmoid_attention", name, partial(_qkv, **sizes), partial(_sigmoid, mask=mask), name in _CORE)
        for name, (mask, sizes) in MASKS.items()
        if name not in ("causal, one head of keys", "prefix", "negative scale")
    ]
    trained = partial(_qkv, bias=(4, 300, 1))
    slopes = lambda gen: _qkv(gen) | {"alibi_slopes": torch.rand(4, generator=gen).double()}  # noqa: E731

    def with_slopes(tensors: Tensors, engine: str | None) -> tuple[Tensor, ...]:
        fixed = tensors | {"alibi_slopes": tensors["alibi_slopes"].detach()}
        return _sigmoid(fixed, engine, is_causal=True)

    return [
        *found,
        Case("sigmoid_attention", "trained bias", trained, partial(_sigmoid, is_causal=True), is_core=True),
        Case("sigmoid_attention", "ALiBi", slopes, with_slopes),
        Case(
            "sigmoid_attention",
            "128 channels",
            partial(_qkv, head_dim=128),
            partial(_sigmoid, is_causal=True),
        ),
    ]


# --- recurrences ---


def _recurrence(
    gen: torch.Generator,
    *,
    operator: str,
    decay: str,
    sizes: tuple[int, int, int, int, int] = (2, 2, 150, 32, 64),
) -> Tensors:
    """Inputs with which states stay small: keys of length one where they correct, mild decays."""
    batch, heads, length, key_dim, value_dim = sizes
    keys = (batch, heads, length, key_dim)
    tensors = _normal(gen, q=keys, k=keys, v=(batch, heads, length, value_dim))
    tensors |= _normal(gen, initial_state=(batch, heads, key_dim, value_dim))
    if operator != "gated_linear_attention":
        tensors["k"] = F.normalize(tensors["k"], dim=-1)
    if decay != "none":
        shape = keys if decay == "channel" else keys[:3]
        tensors["log_decay"] = -0.3 * torch.rand(shape, generator=gen, dtype=torch.float64)
    if operator == "delta_rule":
        tensors["beta"] = torch.rand(keys[:3], generator=gen, dtype=torch.float64)
    if operator == "low_rank_recurrence":
        unit = F.normalize(torch.randn(keys, generator=gen, dtype=torch.float64), dim=-1)
        tensors["a"] = -unit
        tensors["b"] = unit * torch.rand((*keys[:3], 1), generator=gen, dtype=torch.float64)
        tensors.setdefault("log_decay", torch.zeros(keys[:3], dtype=torch.float64))
    return tensors


def _recur(tensors: Tensors, engine: str | None, *, operator: str) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] = getattr(ops, operator)(**tensors, engine=engine)
    return outputs


def _recurrence_cases() -> list[Case]:
    sizes = {"": (2, 2, 150, 32, 64), ", 1 token": (1, 2, 1, 16, 16), ", no token": (1, 2, 0, 16, 16)}
    return [
        Case(
            operator,
            f"{decay} decay{length}",
            partial(_recurrence, operator=operator, decay=decay, sizes=size),
            partial(_recur, operator=operator),
            is_core=not length and decay == "head",
        )
        for operator in ("gated_linear_attention", "delta_rule", "low_rank_recurrence")
        for decay in ("none", "head", "channel")
        for length, size in sizes.items()
        if decay == "head" or not length
    ]


def _scan_inputs(gen: torch.Generator, *, length: int, with_state: bool = False) -> Tensors:
    channels, states = 24, 16
    tensors = _normal(gen, x=(2, length, channels), B=(2, length, states), C=(2, length, states))
    tensors["dt"] = 0.2 * torch.rand(2, length, channels, generator=gen, dtype=torch.float64)
    tensors["A"] = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1)
    tensors["D"] = torch.ones(channels, dtype=torch.float64)
    return tensors | (_normal(gen, initial_state=(2, channels, states)) if with_state else {})


def _wkv_inputs(gen: torch.Generator, *, length: int) -> Tensors:
    tensors = _normal(gen, k=(2, length, 24), v=(2, length, 24), u=(24,))
    return tensors | {"w": -torch.rand(24, generator=gen, dtype=torch.float64).exp()}


def _wkv(tensors: Tensors, engine: str | None) -> tuple[Tensor, ...]:
    y, state = ops.wkv(**tensors, engine=engine)
    return y, *state


def _scan_cases() -> list[Case]:
    lengths = (0, 1, 37, 150)
    scan = partial(_recur, operator="selective_scan")
    return [
        *(
            Case("selective_scan", f"{n} tokens", partial(_scan_inputs, length=n), scan, n == 150)
            for n in lengths
        ),
        Case("selective_scan", "a first state", partial(_scan_inputs, length=37, with_state=True), scan),
        *(Case("wkv", f"{n} tokens", partial(_wkv_inputs, length=n), _wkv, n == 150) for n in lengths),
    ]


# --- images, and operators without engines ---


def _neighbors(tensors: Tensors, engine: str | None, **options: Any) -> tuple[Tensor, ...]:
    if engine == "reference":
        return neighborhood.neighborhood_reference(**tensors, **options)
    function = getattr(ops, f"na{tensors['query'].ndim - 3}d")
    outputs: tuple[Tensor, ...] = function(**tensors, **options, backend=engine, return_lse=True)
    return outputs


def _grid(gen: torch.Generator, *grid: int) -> Tensors:
    shape = (2, *grid, 2, 32)
    return _normal(gen, query=shape, key=shape, value=shape)


def _neighborhood_cases() -> list[Case]:
    windows: dict[tuple[int, ...], dict[str, Any]] = {
        (40,): {"kernel_size": 7},
        (13, 17): {"kernel_size": 5, "dilation": (2, 1), "is_causal": (True, False)},
        (20, 18): {"kernel_size": 7, "stride": 2},
        (4, 6, 7): {"kernel_size": 3},
    }
    return [
        Case(
            "neighborhood_attention",
            f"{'x'.join(map(str, grid))} {options}",
            lambda gen, grid=grid: _grid(gen, *grid),  # type: ignore[misc]
            partial(_neighbors, **options),
            is_core=len(grid) == 2,
        )
        for grid, options in windows.items()
    ]


def _either(fast: Callable[..., Tensor], definition: Callable[..., Tensor], **options: Any) -> Call:
    return lambda tensors, engine: ((definition if engine == "reference" else fast)(**tensors, **options),)


def _selected(gen: torch.Generator, *, length: int) -> Tensors:
    tensors = _qkv(gen, q_length=length)
    own = torch.arange(length)[:, None] // 16
    blocks = (torch.rand(2, 2, length, 2, generator=gen) * own).long()
    return tensors | {"blocks": torch.where(own > 0, blocks, -1)}


def _other_cases() -> list[Case]:
    maps = (2, 2, 12, 16, 16)
    tokens, maps_of = (2, 150, 12), dict.fromkeys("qkv", maps)

    def draw(**shapes: tuple[int, ...]) -> Callable[[torch.Generator], Tensors]:
        return lambda gen: _normal(gen, **shapes)

    return [
        Case(
            "causal_conv",
            "150 taps",
            draw(x=tokens, kernel=(12, 150)),
            _either(ops.causal_conv, ops.causal_conv_reference),
        ),
        Case(
            "short_conv",
            "4 taps",
            draw(x=tokens, weight=(12, 4), bias=(12,)),
            _either(ops.short_conv, ops.short_conv_reference),
        ),
        Case(
            "taylor_attention",
            "150 tokens",
            draw(**dict.fromkeys("qkv", (2, 2, 150, 16))),
            _either(ops.taylor_attention, ops.taylor_attention_reference),
        ),
        *(
            Case(
                "selected_attention",
                f"{length} tokens",
                partial(_selected, length=length),
                _either(selected_attention, selected_attention_reference, block_size=16),
            )
            for length in (1, 50)
        ),
        Case(
            "halo_attention",
            "blocks of 4",
            draw(**maps_of, rel_height=(15, 16), rel_width=(15, 16)),
            _either(ops.halo_attention, ops.halo_attention_reference, block_size=4, halo_size=2),
        ),
        Case(
            "window_attention",
            "shifted",
            draw(**maps_of),
            _either(ops.window_attention, ops.window_attention_reference, window_size=4, shift=2),
        ),
        Case(
            "grid_attention",
            "4x4",
            draw(**maps_of),
            _either(ops.grid_attention, ops.grid_attention_reference, grid_size=4),
        ),
    ]


CASES: tuple[Case, ...] = (
    *_attention_cases(),
    *_sigmoid_cases(),
    *_recurrence_cases(),
    *_scan_cases(),
    *_neighborhood_cases(),
    *_other_cases(),
)
