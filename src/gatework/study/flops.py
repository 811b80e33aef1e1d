"""What one training step costs: its arithmetic, counted, and the memory it keeps for its backward pass.

Both are counted on a real step and repeat exactly: they depend on the model and the shape of the batch, not
on the machine. Time, which does, is measured elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gatework.tasks.batches import own_copy
from gatework.tasks.module import TaskModule

_aten = torch.ops.aten


@dataclass(frozen=True)
class StepCost:
    """The counted cost of one training step.

    Attributes:
        flops: Floating-point operations of forward and backward pass; see :class:`FlopCounter`.
        activation_bytes: Bytes that the forward pass keeps for the backward pass, parameters not counted.
    """

    flops: int
    activation_bytes: int


class FlopCounter(TorchDispatchMode):
    """Count the floating-point operations of whatever runs inside the ``with`` block, in ``flops``.

    A multiply-add counts as two. Products of matrices and convolutions count as PyTorch's own counter has
    them; attention counts the pairs it may look at (half of them if it is causal); a Fourier transform of
    ``n`` numbers counts ``5 n log2 n``, half of that for real ones; every other arithmetic operator (sums,
    exponentials, softmax, norms, ...) counts one per element of its largest tensor. Moving, viewing and
    indexing count nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops += _operator_flops(func, args, kwargs, out)
        return out


def _operator_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    operator = func.overloadpacket
    if operator in _FORMULAS:
        return _FORMULAS[operator](args, kwargs, out)
    if operator in flop_registry:
        return int(flop_registry[operator](*args, **kwargs, out_val=out))
    if operator in _MOVES or not (operator in _ELEMENTWISE or _COUNTED_TAGS & set(func.tags)):
        return 0
    return max((tensor.numel() for tensor in _tensors((args, out))), default=0)


_COUNTED_TAGS = {torch.Tag.pointwise, torch.Tag.reduction}
#: Tagged as arithmetic, but they only move.
_MOVES = {_aten.clone, _aten.copy_, _aten.fill_, _aten.where}
#: Arithmetic without a tag.
_ELEMENTWISE = {
    _aten._softmax,
    _aten._softmax_backward_data,
    _aten._log_softmax,
    _aten._log_softmax_backward_data,
    _aten.native_layer_norm,
    _aten.native_layer_norm_backward,
    _aten._fused_rms_norm,
    _aten._fused_rms_norm_backward,
    _aten.cumsum,
    _aten.cumprod,
    _aten.logcumsumexp,
}


def _fft_flops(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Count ``5 n log2 n`` per complex transform of length ``n``, half if one side is real."""
    x, dims = args[0], args[1]
    length: int = math.prod(max(x.shape[dim], out.shape[dim]) for dim in dims)
    batch: int = math.prod(
        size for dim, size in enumerate(x.shape) if dim - x.ndim not in dims and dim not in dims
    )
    share = 1 if x.is_complex() and out.is_complex() else 0.5
    return round(share * 5 * batch * length * math.log2(max(length, 2)))


def _num_pairs(query: Tensor, key: Tensor, *, is_causal: bool) -> int:
    """How many pairs of a query and a key there are over batch and heads."""
    queries, keys = query.shape[2], key.shape[2]
    diagonal = min(queries, keys)
    below = diagonal * (diagonal + 1) // 2 + (queries - diagonal) * keys
    heads: int = query.shape[0] * query.shape[1]
    return heads * (below if is_causal else queries * keys)


def _cpu_attention_flops(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Two products of ``pairs x head_dim`` per head."""
    query, key, value = args[:3]
    causal = bool(args[4] if len(args) > 4 else kwargs.get("is_causal", False))
    width: int = query.shape[3] + value.shape[3]
    return 2 * _num_pairs(query, key, is_causal=causal) * width


def _cpu_attention_backward_flops(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Five products: the scores once more, and the four that give the gradients."""
    _, query, key, value = args[:4]
    causal = bool(args[7] if len(args) > 7 else kwargs.get("is_causal", False))
    width: int = 3 * query.shape[3] + 2 * value.shape[3]
    return 2 * _num_pairs(query, key, is_causal=causal) * width


_FORMULAS: dict[Any, Callable[[tuple[Any, ...], dict[str, Any], Any], int]] = {
    _aten._fft_r2c: _fft_flops,
    _aten._fft_c2r: _fft_flops,
    _aten._fft_c2c: _fft_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}


def _tensors(tree: Any) -> Iterable[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


def step_cost(module: TaskModule, batch: Any) -> StepCost:
    """Count what one training step of a module on ``batch`` costs; weights and gradients stay as they were.

    The optimizer's own arithmetic, a few operations per parameter, is not counted.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: WeakSet[_Kept] = WeakSet()

    def save(tensor: Tensor) -> _Kept:
        held = _Kept(tensor)
        kept.add(held)
        return held

    # A batch cut out of a data set shares the storage of the whole: a copy is what a step would hold.
    batch = own_copy(batch)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with _as_in_training(module), torch.random.fork_rng(devices=[]), FlopCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda held: held.tensor):
            loss = module.training_step(batch, 0)
        storages = {held.address: held.nbytes for held in kept if held.address not in parameters}
        torch.autograd.grad(loss, trained, allow_unused=True)
    return StepCost(counter.flops, sum(storages.values()))


@contextmanager
def _as_in_training(module: TaskModule) -> Iterator[None]:
    """Put a module into training outside any trainer, and leave buffers (running means) as they were."""
    modes = {part: part.training for part in module.modules()}
    trainer = module._trainer
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train()
    module._trainer, module.checks_loss = None, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are trying to `self.log", module="lightning")
            yield
    finally:
        module._trainer, module.checks_loss = trainer, True
        for part, was_training in modes.items():
            part.training = was_training
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


class _Kept:
    """A tensor that autograd keeps: dies with the node that keeps it, whose memory may then hold another."""

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.address, self.nbytes = tensor, storage.data_ptr(), storage.nbytes()
