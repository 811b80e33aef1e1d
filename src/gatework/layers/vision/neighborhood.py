"""Neighbourhood attention as layers: projections around :func:`gatework.ops.na2d` and its kin.

The modules have the arguments, parameter names and initial values of NATTEN's, of today's version and of the
older ones with a relative bias (arXiv:2204.07143, arXiv:2504.16922).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gatework.checks import (
    check_choice,
    check_divides,
    check_flags,
    check_int,
    check_number,
    check_probability,
)
from gatework.ops.vision.neighborhood import neighborhood_attention
from gatework.ops.vision.neighborhood_halves import crop_bias, neighborhood_logits, neighborhood_weighted_sum
from gatework.ops.vision.neighborhood_windows import Flags, Sizes, WindowSpec, window_spec

_Channels = Float[Tensor, "batch *grid channels"]
SmallInput = Literal["error", "clamp"]


class _NeighborhoodAttention(nn.Module):
    """What all of them share: projections, windows, and the policy for inputs that are too small."""

    num_axes: ClassVar[int]

    def __init__(
        self,
        dim: tuple[str, int],
        num_heads: int,
        spec: WindowSpec,
        qkv_bias: bool,
        qk_scale: float | None,
        proj_drop: float,
        small_input: SmallInput,
    ) -> None:
        super().__init__()
        dim_name, embed_dim = dim
        check_int(dim_name, embed_dim, at_least=1)
        check_choice("small_input", small_input, ("error", "clamp"))
        check_flags(qkv_bias=qkv_bias)
        check_probability("proj_drop", proj_drop)
        if qk_scale is not None:
            check_number("qk_scale", qk_scale)
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = check_divides("num_heads", num_heads, dim_name, embed_dim)
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.spec = spec
        self.small_input = small_input
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Tokens in a window along each axis."""
        return self.spec.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        """Neighbours that share a window, along each axis."""
        return self.spec.stride

    @property
    def dilation(self) -> tuple[int, ...]:
        """Distance between tokens of a window along each axis."""
        return self.spec.dilation

    @property
    def is_causal(self) -> tuple[bool, ...]:
        """Whether queries see no later tokens of an axis."""
        return self.spec.is_causal

    def forward(self, x: _Channels) -> _Channels:
        """Let every token attend to its window.

        Args:
            x: Tokens of a grid, channels last.

        Raises:
            ValueError: If ``x`` has other axes or channels, or is too small for the windows.
        """
        if x.ndim != self.num_axes + 2 or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have shape (batch, {self.num_axes} axes of tokens, {self.embed_dim}), "
                f"got {tuple(x.shape)}"
            )
        grid = tuple(x.shape[1:-1])
        spec = self.spec.clamped(grid) if self.small_input == "clamp" else self.spec
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.unbind(-3)
        output: Tensor = self.proj_drop(self.proj(self._attend(q, k, v, spec.on(grid)).flatten(-2)))
        return output

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: WindowSpec) -> Tensor:
        return neighborhood_attention(q, k, v, spec, scale=self.scale)[0]

    def extra_repr(self) -> str:
        """Show the heads and the windows."""
        windows = ", ".join(f"{name}={value}" for name, value in self.spec._asdict().items())
        return f"head_dim={self.head_dim}, num_heads={self.num_heads}, {windows}"


class _Current(_NeighborhoodAttention):
    """The arguments of today's modules."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        small_input: SmallInput = "error",
    ) -> None:
        spec = window_spec(self.num_axes, kernel_size, stride, dilation, is_causal)
        for size, step in zip(spec.kernel_size, spec.stride, strict=True):
            if 0 < size < step:
                raise ValueError(f"stride must be at most kernel_size, got {stride!r} and {kernel_size!r}")
        super().__init__(
            ("embed_dim", embed_dim), num_heads, spec, qkv_bias, qk_scale, proj_drop, small_input
        )


class NeighborhoodAttention2D(_Current):
    """Neighbourhood attention on a plane: ``y = proj(na2d(q, k, v))`` with ``q, k, v = split(qkv(x))``.

    Parameters ``qkv.weight (3 * dim, dim)``, ``qkv.bias`` unless ``qkv_bias`` is False, ``proj.weight`` and
    ``proj.bias``, as in NATTEN, whose checkpoints load.

    Args:
        embed_dim: Number of channels.
        num_heads: Number of heads; divides ``embed_dim``.
        kernel_size: Tokens in a window, at least 2; -1 is a whole axis. A tuple has one entry for each axis.
        stride: Neighbours that share a window, at most ``kernel_size``.
        dilation: Distance between tokens of a window.
        is_causal: Whether queries see no later tokens of an axis.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        proj_drop: Probability of dropping an output in training.
        small_input: What to do with inputs of fewer tokens along an axis than ``kernel_size * dilation``:
            ``"error"``, or ``"clamp"``: lower the dilation, and where that is not enough the window.

    Raises:
        ValueError: If heads do not divide, or an argument is out of range.
    """

    num_axes = 2


class NeighborhoodAttention1D(_Current):
    """Neighbourhood attention on a sequence: :class:`NeighborhoodAttention2D` with one axis."""

    num_axes = 1


class NeighborhoodAttention3D(_Current):
    """Neighbourhood attention on a volume: :class:`NeighborhoodAttention2D` with three axes."""

    num_axes = 3


class _WithBias(_NeighborhoodAttention):
    """The arguments of the modules of version 0.17."""

    rpb: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
        *,
        small_input: SmallInput = "error",
    ) -> None:
        spec = window_spec(self.num_axes, kernel_size, 1, dilation, is_causal)
        if any(size < 3 or size % 2 == 0 for size in spec.kernel_size):
            raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size!r}")
        if rel_pos_bias and any(spec.is_causal):
            raise NotImplementedError(f"rel_pos_bias cannot be combined with is_causal={is_causal!r}")
        super().__init__(("dim", dim), num_heads, spec, qkv_bias, qk_scale, proj_drop, small_input)
        check_probability("attn_drop", attn_drop)
        check_flags(rel_pos_bias=rel_pos_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.register_parameter("rpb", None)
        if rel_pos_bias:
            offsets = (2 * size - 1 for size in spec.kernel_size)
            self.rpb = nn.Parameter(torch.empty(num_heads, *offsets))
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, spec: WindowSpec) -> Tensor:
        if self.rpb is None and not (self.training and self.attn_drop.p):
            return super()._attend(q, k, v, spec)
        q, k, v = (tensor.movedim(-2, 1) for tensor in (q * self.scale, k, v))
        rpb = None if self.rpb is None else crop_bias(self.rpb, spec.kernel_size)
        logits = neighborhood_logits(q, k, spec, rpb=rpb)
        weights = self.attn_drop(torch.softmax(logits, -1))
        return neighborhood_weighted_sum(weights, v, spec).movedim(1, -2)


class BiasedNeighborhoodAttention2D(_WithBias):
    """NATTEN's module up to version 0.17, with relative position bias and dropout of weights.

    As :class:`NeighborhoodAttention2D` without stride; ``rpb[h, key - query + kernel_size - 1]``, counted in
    dilated steps along each axis, is added to the scores of head ``h``. The checkpoints of NAT and DiNAT
    (arXiv:2204.07143, arXiv:2209.15001) have its parameters ``qkv``, ``proj`` and ``rpb``. For an input
    smaller than the window, ``small_input="clamp"`` uses the middle of the bias.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; divides ``dim``.
        kernel_size: Odd number of tokens in a window, at least 3.
        dilation: Distance between tokens of a window.
        is_causal: Whether queries see no later tokens of an axis; not with ``rel_pos_bias``.
        rel_pos_bias: Whether there is a bias, the parameter ``rpb``.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        attn_drop: Probability of dropping a weight in training.
        proj_drop: Probability of dropping an output in training.
        use_experimental_ops: Without effect.
        small_input: As in :class:`NeighborhoodAttention2D`.

    Raises:
        NotImplementedError: If a causal axis meets ``rel_pos_bias``.
        ValueError: If heads do not divide, or an argument is out of range.
    """

    num_axes = 2


class BiasedNeighborhoodAttention1D(_WithBias):
    """NATTEN's older module on a sequence: :class:`BiasedNeighborhoodAttention2D` with one axis."""

    num_axes = 1


class BiasedNeighborhoodAttention3D(_WithBias):
    """NATTEN's older module on a volume: :class:`BiasedNeighborhoodAttention2D` with three axes."""

    num_axes = 3
