"""H3: two state-space models around two multiplicative gates, a linear attention that can also shift.

The shift model lets a key meet its predecessor, the diagonal model carries key-value products along
(arXiv:2212.14052, section 3; diagonal initialisation from arXiv:2206.11893).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from gatework.checks import (
    check_choice,
    check_divides,
    check_int,
    check_not_below,
    check_positive,
    check_sizes,
)
from gatework.layers.sequence.mixer import Mixer, State, StateTensor
from gatework.ops.long_conv import causal_conv, causal_conv_tail
from gatework.ops.recurrence.diagonal_ssm import (
    diagonal_ssm,
    diagonal_ssm_kernel,
    diagonal_ssm_step,
    discretize_bilinear,
    discretize_zoh,
)

_DISCRETIZATIONS = {"bilinear": discretize_bilinear, "zoh": discretize_zoh}


class ShiftSSM(nn.Module):
    """``y = causal_conv(x, K) + D x`` with ``K_t = sum_{n >= t} C_n B_{n-t}``: a register of inputs.

    Parameters ``B`` (dim, state_dim), ``C`` (1, dim, state_dim) and ``D`` (dim); ``B`` starts as the first
    unit vector, so that the filter starts as ``C``.
    """

    def __init__(self, dim: int, state_dim: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(state_dim)
        self.B = nn.Parameter(torch.eye(1, state_dim).repeat(dim, 1))
        self.C = nn.Parameter(torch.empty(1, dim, state_dim).uniform_(-bound, bound))
        self.D = nn.Parameter(torch.randn(dim))

    def taps(self) -> Float[Tensor, "channels state_dim"]:
        """Return the filter: the correlation of ``C`` with ``B``."""
        return causal_conv(self.C.flip(2).mT, self.B)[0].flip(0).T


class DiagonalSSM(nn.Module):
    """A diagonal state-space model per channel (:mod:`gatework.ops.recurrence.diagonal_ssm`), trained step.

    ``A = -exp(inv_A_real) + i A_imag`` and ``dt = exp(log_dt)``; complex parameters are pairs of reals.
    Channel ``h`` uses ``A`` and ``B`` of index ``h mod num_ssm``, and its own ``C``, ``D`` and ``dt``.
    """

    def __init__(
        self,
        channels: int,
        state_dim: int,
        *,
        num_ssm: int,
        dt_min: float,
        dt_max: float,
        measure: str,
        discretization: str,
    ) -> None:
        super().__init__()
        modes = state_dim // 2
        self.copies = check_divides("num_ssm", num_ssm, "dim/head_dim", channels)
        self.discretize = _DISCRETIZATIONS[discretization]
        index = torch.arange(modes, dtype=torch.float64)
        if measure == "diag-lin":
            frequency = math.pi * index
        else:
            frequency = state_dim / math.pi * (state_dim / (1 + 2 * index) - 1)
        dtype = torch.get_default_dtype()
        self.A_imag = nn.Parameter(frequency.to(dtype).repeat(num_ssm, 1))
        self.inv_A_real = nn.Parameter(torch.full((num_ssm, modes), math.log(0.5)))
        self.B = nn.Parameter(torch.view_as_real(torch.ones(num_ssm, modes) + 0j).contiguous())
        self.C = nn.Parameter(torch.randn(1, channels, modes, 2) / math.sqrt(2))
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)))
        self.D = nn.Parameter(torch.randn(channels))

    def discrete(
        self,
    ) -> tuple[
        Complex[Tensor, "channels modes"],
        Complex[Tensor, "channels modes"],
        Complex[Tensor, "channels modes"],
    ]:
        """Return decays and input weights per step (complex128), and output weights."""
        A = torch.complex(-self.inv_A_real.double().exp(), self.A_imag.double()).repeat(self.copies, 1)
        B = torch.complex(*self.B.double().unbind(-1)).repeat(self.copies, 1)
        C = torch.complex(*_at_least_float32(self.C[0]).unbind(-1))
        return *self.discretize(A, B, self.log_dt.double().exp()), C


class H3(Mixer):
    """``y = W_o (q . (diagonal(k' v^T) + D k' v^T))`` with ``k' = shift(k) + D_k k`` and ``q, k, v = W x``.

    Keys and values multiply as outer products within heads of ``head_dim`` channels; all entries of a head
    share one diagonal model. ``step`` is a true recurrence: its state does not grow with the length once
    ``state_dim`` tokens are read.

    Args:
        dim: Number of channels.
        state_dim: Taps of the shift model; half as many complex modes for the diagonal one.
        head_dim: Channels per head.
        max_length: Cuts both filters after this many taps, as the authors' code does; None lets them reach
            any length. A cut filter is no recurrence: streaming past ``max_length`` is refused.
        dt_min: Smallest initial step size of the diagonal model.
        dt_max: Largest one.
        measure: Initial frequencies, ``"diag-lin"`` or ``"diag-inv"`` (arXiv:2206.11893, section 4).
        num_ssm: Number of different diagonal models, dividing the number of heads; None for one per head.
        discretization: ``"bilinear"`` or ``"zoh"``.

    Raises:
        ValueError: If an option is out of its range; when streaming, if more than ``max_length`` tokens come.
    """

    official_names: ClassVar[Mapping[str, str]] = {
        "ssm_k_kernel.kernel.B": "shift.B",
        "ssm_k_kernel.kernel.C": "shift.C",
        "ssm_k_D": "shift.D",
        "kernel.kernel.A_imag": "diagonal.A_imag",
        "kernel.kernel.inv_A_real": "diagonal.inv_A_real",
        "kernel.kernel.B": "diagonal.B",
        "kernel.kernel.C": "diagonal.C",
        "kernel.kernel.log_dt": "diagonal.log_dt",
        "D": "diagonal.D",
    }
    residual_outputs: ClassVar[tuple[str, ...]] = ("output_linear",)

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 64,
        head_dim: int = 1,
        max_length: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        measure: str = "diag-lin",
        num_ssm: int | None = None,
        discretization: str = "bilinear",
    ) -> None:
        super().__init__(dim)
        self.num_heads = check_divides("head_dim", head_dim, "dim", dim)
        check_int("state_dim", state_dim, at_least=2)  # one complex mode
        if max_length is not None:
            check_sizes(max_length=max_length)
        check_positive(dt_min=dt_min)
        check_not_below("dt_max", dt_max, "dt_min", dt_min)
        check_choice("measure", measure, ("diag-lin", "diag-inv"))
        check_choice("discretization", discretization, _DISCRETIZATIONS)
        self.head_dim = head_dim
        self.max_length = max_length
        self.shift_reach = state_dim if max_length is None else min(state_dim, max_length)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.shift = ShiftSSM(dim, state_dim)
        self.diagonal = DiagonalSSM(
            self.num_heads,
            state_dim,
            num_ssm=self.num_heads if num_ssm is None else num_ssm,
            dt_min=dt_min,
            dt_max=dt_max,
            measure=measure,
            discretization=discretization,
        )
        self.output_linear = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        k = self.k_proj(x)
        k = causal_conv(k, self._shift_taps()) + self.shift.D * k
        kv = self._outer(k, self.v_proj(x))
        length = x.shape[1] if self.max_length is None else min(x.shape[1], self.max_length)
        y = causal_conv(kv, diagonal_ssm_kernel(*self.diagonal.discrete(), max(length, 1)))
        return self._read(y, kv, self.q_proj(x))

    def state_layout(self) -> dict[str, StateTensor]:
        """``{"keys", "modes"}``: keys in the shift's reach, and modes (real and imaginary parts last).

        With ``max_length`` also the ``"position"``, the number of tokens read.
        """
        layout = {
            "keys": StateTensor((None, self.dim)),
            "modes": StateTensor((self.head_dim, self.head_dim, *self.diagonal.C.shape[1:]), "wide"),
        }
        if self.max_length is not None:
            layout["position"] = StateTensor((), "integer")
        return layout

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens after ``state`` (or from the start); return outputs and new state."""
        state = self._after(state, x)
        new_state = self._advance(x, state)
        k = self.k_proj(x)
        window = torch.cat([state["keys"], k], 1)
        k = causal_conv_tail(window, self._shift_taps(), x.shape[1]).to(k.dtype) + self.shift.D * k
        kv = self._outer(k, self.v_proj(x))
        y, new_state["modes"] = self._recur(kv, state["modes"])
        expired = max(0, window.shape[1] - (self.shift_reach - 1))
        new_state["keys"] = window[:, expired:].to(state["keys"].dtype, copy=True)
        return self._read(y, kv, self.q_proj(x)), new_state

    def state_size(self, length: int) -> int:
        """Return the size of the keys in the shift's reach, and of the modes (two reals each)."""
        position = 0 if self.max_length is None else 1
        modes = self.head_dim**2 * self.diagonal.C.numel()
        return min(length, self.shift_reach - 1) * self.dim + modes + position

    def published_state_size(self, length: int) -> int:
        """``dim * state_dim``, as Zoology counts, whatever the width of heads."""
        return self.dim * self.shift.B.shape[1]

    def _shift_taps(self) -> Tensor:
        return self.shift.taps()[:, : self.shift_reach]

    def _heads(self, x: Tensor) -> Tensor:
        """Split ``(batch, length, channels)`` into ``(batch, head channel, length, head)``."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).permute(0, 3, 1, 2)

    def _outer(self, k: Tensor, v: Tensor) -> Tensor:
        """Multiply each key channel of a head with each value channel; the products join the batch axis."""
        return (self._heads(k).unsqueeze(2) * self._heads(v).unsqueeze(1)).flatten(0, 2)

    def _recur(self, kv: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
        """Run the diagonal model over a stretch; ``modes`` are pairs of reals."""
        batch = kv.shape[0] // self.head_dim**2
        start = torch.view_as_complex(_at_least_float32(modes)).flatten(0, 2)
        if kv.shape[1] == 1:
            token, end = diagonal_ssm_step(kv[:, 0], *self.diagonal.discrete(), start)
            y = token.unsqueeze(1)
        else:
            y, end = diagonal_ssm(kv, *self.diagonal.discrete(), start)
        shape = (batch, self.head_dim, self.head_dim, *self.diagonal.C.shape[1:])
        return y, torch.view_as_real(end).reshape(shape).to(modes.dtype)

    def _read(self, y: Tensor, kv: Tensor, q: Tensor) -> Tensor:
        """Contract each head's products with its query, add the present, and project."""
        products = y + self.diagonal.D * kv
        products = products.reshape(q.shape[0], self.head_dim, self.head_dim, *products.shape[1:])
        mixed = (self._heads(q).unsqueeze(2) * products).sum(1)  # batch, value channel, length, head
        projected: Tensor = self.output_linear(mixed.transpose(1, 2).flatten(2).to(q.dtype))
        return projected

    def _advance(self, x: Tensor, state: State) -> State:
        """Count the tokens where ``max_length`` limits them."""
        if self.max_length is None:
            return {}
        position = state["position"] + x.shape[1]
        if (position > self.max_length).any():
            raise ValueError(
                f"H3 with max_length={self.max_length} cuts its filters there and streams no further, "
                f"got {int(position.max())} tokens; max_length=None has no limit"
            )
        return {"position": position}


def _at_least_float32(x: Tensor) -> Tensor:
    """Widen half precisions, which have no complex counterpart."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
