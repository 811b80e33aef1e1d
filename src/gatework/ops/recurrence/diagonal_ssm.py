"""Diagonal state-space models: a channel remembers through a few decaying oscillations.

Every channel keeps complex modes ``s_t = dA * s_{t-1} + dB * x_t`` and reads ``y_t = 2 Re sum_n C_n s_tn``
(S4D, arXiv:2206.11893, section 3; in H3, arXiv:2212.14052, section 3). Unrolled it is a long convolution,
whose filter is a sum of powers; in steps it is a recurrence with a state of fixed size.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from gatework.checks import check_counts
from gatework.ops.long_conv import causal_conv

_Modes = Complex[Tensor, "channels modes"]
_State = Complex[Tensor, "batch channels modes"]


def discretize_bilinear(A: _Modes, B: _Modes, dt: Float[Tensor, " channels"]) -> tuple[_Modes, _Modes]:
    """Bilinear steps: ``dA = (1 + dt A/2)/(1 - dt A/2)`` and ``dB = dt B/(1 - dt A/2)``."""
    half = A * dt[:, None] / 2
    return (1 + half) / (1 - half), dt[:, None] * B / (1 - half)


def discretize_zoh(A: _Modes, B: _Modes, dt: Float[Tensor, " channels"]) -> tuple[_Modes, _Modes]:
    """Steps that hold the input (zero order): ``dA = exp(dt A)``, ``dB = B (exp(dt A) - 1)/A``."""
    dA = torch.exp(A * dt[:, None])
    return dA, B * (dA - 1) / A


def diagonal_ssm_kernel_reference(
    dA: _Modes, dB: _Modes, C: _Modes, length: int
) -> Float[Tensor, "channels length"]:
    """The definition: ``K[h, l] = 2 Re sum_n C[h, n] dB[h, n] dA[h, n]**l``."""
    terms = C * dB
    taps = [2 * terms.sum(1).real]
    for _ in range(length - 1):
        terms = terms * dA
        taps.append(2 * terms.sum(1).real)
    return torch.stack(taps, 1)[:, :length]


def diagonal_ssm_kernel(dA: _Modes, dB: _Modes, C: _Modes, length: int) -> Float[Tensor, "channels length"]:
    """Return the first ``length`` taps of the filter that the state-space model is.

    Computes what :func:`diagonal_ssm_kernel_reference` defines. With ``l = a T + r`` and ``T`` near
    ``sqrt(length)``, the powers ``dA**(a T)`` and ``dA**r`` are two short tables whose product is one real
    matrix multiplication: O(length * modes) arithmetic, O(sqrt(length) * modes) memory beside the result.

    Args:
        dA: Discrete decays, of magnitude at most 1. Powers are formed in complex128, since the phase of
            ``dA**l`` loses ``l`` times the precision it is formed in.
        dB: Discrete input weights.
        C: Output weights, whose precision is that of the result.
        length: Number of taps.

    Returns:
        One filter per channel; tap 0 weighs the present.

    Raises:
        ValueError: If ``length`` is negative.
    """
    check_counts(length=length)
    return _sum_powers((C * dB).unsqueeze(1), dA, length, C.real.dtype).squeeze(1)


def diagonal_ssm_reference(
    x: Float[Tensor, "batch length channels"], dA: _Modes, dB: _Modes, C: _Modes, state: _State | None = None
) -> tuple[Float[Tensor, "batch length channels"], _State]:
    """The recurrence, token by token: outputs, and the state after the last token."""
    if state is None:
        state = C.new_zeros(x.shape[0], *C.shape)
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        y[:, t], state = diagonal_ssm_step(x[:, t], dA, dB, C, state)
    return y, state


def diagonal_ssm_step(
    x: Float[Tensor, "batch channels"], dA: _Modes, dB: _Modes, C: _Modes, state: _State
) -> tuple[Float[Tensor, "batch channels"], _State]:
    """One token: ``s = dA * state + dB * x`` and ``y = 2 Re sum_n C_n s_n``; return ``y`` and ``s``."""
    new_state = (dA * state + dB * x.unsqueeze(-1)).to(state.dtype)
    return 2 * (C * new_state).sum(-1).real.to(x.dtype), new_state


def diagonal_ssm(
    x: Float[Tensor, "batch length channels"], dA: _Modes, dB: _Modes, C: _Modes, state: _State | None = None
) -> tuple[Float[Tensor, "batch length channels"], _State]:
    """Read a stretch of tokens in parallel; return the outputs and the state after the last one.

    Computes what :func:`diagonal_ssm_reference` defines: outputs by :func:`causal_conv` with
    :func:`diagonal_ssm_kernel`, plus what the given state still contributes, in O(length * modes).

    Args:
        x: Inputs.
        dA: Discrete decays.
        dB: Discrete input weights.
        C: Output weights, whose precision is that of a new state.
        state: Modes before the first token; zeros if None.
    """
    length = x.shape[1]
    if x.numel() == 0:
        return x.clone(), C.new_zeros(x.shape[0], *C.shape) if state is None else state
    y = causal_conv(x, diagonal_ssm_kernel(dA, dB, C, length))
    compute = torch.promote_types(x.dtype, C.real.dtype)
    new_state = dB * _weigh_by_powers(x.to(compute), dA)
    if state is None:
        return y, new_state.to(C.dtype)
    echo = _sum_powers((C * dA * state).transpose(0, 1), dA, length, compute)
    new_state = new_state + _power(dA, length) * state
    return (y + echo.permute(1, 2, 0)).to(x.dtype), new_state.to(state.dtype)


def _sum_powers(
    weights: Complex[Tensor, "channels rows modes"], base: _Modes, length: int, dtype: torch.dtype
) -> Float[Tensor, "channels rows length"]:
    """``out[h, j, l] = 2 Re sum_n weights[h, j, n] * base[h, n]**l``, in ``dtype``."""
    fine, coarse = _power_tables(base, length)
    rows = (2 * weights.unsqueeze(2) * coarse.mT.unsqueeze(1)).flatten(1, 2)  # channels, rows * blocks, modes
    left = torch.view_as_real(rows).flatten(2).to(dtype)
    right = torch.view_as_real(fine.conj().mT.resolve_conj()).flatten(2).to(dtype)
    with torch.autocast(left.device.type, enabled=False):
        product = left @ right.mT
    return product.reshape(*weights.shape[:2], coarse.shape[-1] * fine.shape[-1])[..., :length]


def _weigh_by_powers(x: Float[Tensor, "batch length channels"], base: _Modes) -> _State:
    """``out[b, h, n] = sum_l base[h, n]**(length - 1 - l) * x[b, l, h]``, the transpose of the above."""
    batch, length, channels = x.shape
    fine, coarse = _power_tables(base, length)
    block, blocks = fine.shape[-1], coarse.shape[-1]
    latest_first = F.pad(x.flip(1), (0, 0, 0, blocks * block - length))
    left = latest_first.permute(2, 0, 1).reshape(channels, batch * blocks, block)
    right = torch.view_as_real(fine.mT.contiguous()).flatten(2).to(x.dtype)
    with torch.autocast(left.device.type, enabled=False):
        product = left @ right
    sums = torch.view_as_complex(product.reshape(channels, batch, blocks, base.shape[1], 2))
    return (sums * coarse.mT.unsqueeze(1)).sum(2).transpose(0, 1)


def _power_tables(
    base: _Modes, length: int
) -> tuple[Complex[Tensor, "channels modes block"], Complex[Tensor, "channels modes blocks"]]:
    """``base**r`` within a block of about ``sqrt(length)``, and ``base**(a * block)`` between blocks."""
    block = 1
    while block * block < length:
        block *= 2
    base = base.to(torch.complex128)
    return _powers(base, block), _powers(_power(base, block), (length + block - 1) // block)


def _powers(base: Tensor, count: int) -> Tensor:
    """``base**0`` to ``base**(count - 1)`` along a new last axis, by doubling (a logarithm fails at 0)."""
    powers, factor = torch.ones_like(base).unsqueeze(-1), base.unsqueeze(-1)
    while powers.shape[-1] < count:
        powers = torch.cat([powers, powers * factor], -1)
        factor = factor * factor
    return powers[..., :count]


def _power(base: Tensor, exponent: int) -> Tensor:
    """``base**exponent`` by squaring."""
    power = torch.ones_like(base)
    while exponent > 0:
        if exponent % 2 == 1:
            power = power * base
        base, exponent = base * base, exponent // 2
    return power
