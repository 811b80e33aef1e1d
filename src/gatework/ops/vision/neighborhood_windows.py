"""Windows of neighbourhood attention as its operators take them: checked, fitted to a grid, rescaled.

The parameters are those of generalised neighbourhood attention (arXiv:2504.16922, section 3); which keys a
window holds is said by :class:`gatework.masks.Neighborhood`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gatework.checks import check_flag_per_axis, check_per_axis
from gatework.masks import Neighborhood

#: One number for every axis, or one for each; so for flags.
Sizes = int | Sequence[int] | None
Flags = bool | Sequence[bool] | None

#: The window that stands for all tokens of an axis.
WHOLE_AXIS = -1


class WindowSpec(NamedTuple):
    """Window, stride, dilation and causality of every axis.

    Attributes:
        kernel_size: Tokens in a window; -1 is the whole axis.
        stride: Neighbours in a group that shares its window.
        dilation: Distance between tokens of a window.
        is_causal: Whether queries see no later tokens of the axis.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]

    def on(self, grid: Sequence[int]) -> WindowSpec:
        """Return the windows on a grid: whole axes get their length.

        Raises:
            ValueError: If ``kernel_size * dilation`` exceeds an axis, or ``stride`` a window.
        """
        window = tuple(
            length if size == WHOLE_AXIS else size
            for size, length in zip(self.kernel_size, grid, strict=True)
        )
        for axis, (size, gap, length) in enumerate(zip(window, self.dilation, grid, strict=True)):
            if size * gap > length:
                raise ValueError(
                    f"kernel_size * dilation must be at most the input's {length} tokens along axis {axis}, "
                    f"got {size} * {gap}: kernel_size={self.kernel_size}, dilation={self.dilation}"
                )
        for size, step in zip(window, self.stride, strict=True):
            if step > size:
                raise ValueError(
                    f"stride must be at most kernel_size along every axis, got stride={self.stride}, "
                    f"kernel_size={window}"
                )
        return self._replace(kernel_size=window)

    def clamped(self, grid: Sequence[int]) -> WindowSpec:
        """Return windows that fit a grid: where one does not, the dilation shrinks first, then the window.

        So an axis that is too short for ``kernel_size * dilation`` keeps its number of keys as long as it
        has as many tokens, spread as far as they can be.
        """
        fitted = []
        for size, step, gap, length in zip(self.kernel_size, self.stride, self.dilation, grid, strict=True):
            if size == WHOLE_AXIS or size >= length:
                fitted.append((WHOLE_AXIS, min(step, max(length, 1)), 1))
            else:
                fitted.append((size, step, min(gap, length // size)))
        window, stride, dilation = zip(*fitted, strict=True)
        return WindowSpec(window, stride, dilation, self.is_causal)

    def is_everything(self, grid: Sequence[int]) -> bool:
        """Whether every query may attend to all tokens of the grid."""
        return self.kernel_size == tuple(grid) and not any(self.is_causal)

    def mask(self, grid: Sequence[int]) -> Neighborhood | None:
        """Return who may attend to whom on a grid that the windows fit; ``None`` for everyone to everyone."""
        if self.is_everything(grid):
            return None
        return Neighborhood(
            tuple(grid),
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            is_causal=self.is_causal,
        )


def window_spec(
    num_axes: int, kernel_size: Sizes, stride: Sizes = 1, dilation: Sizes = 1, is_causal: Flags = False
) -> WindowSpec:
    """Check the parameters of neighbourhood attention and give every axis its own.

    Args:
        num_axes: Axes of the grid of tokens.
        kernel_size: Tokens in a window, at least 2; -1 is the whole axis.
        stride: At least 1, as is ``dilation``; ``None`` is 1.
        dilation: See ``stride``.
        is_causal: ``None`` is False.

    Raises:
        TypeError: If a size is not an integer, or a flag not a bool.
        ValueError: If a value is none of these, or there is another number of them than axes.
    """
    window = check_per_axis("kernel_size", kernel_size, num_axes, at_least=WHOLE_AXIS)
    if any(size in (0, 1) for size in window):
        raise ValueError(f"kernel_size must be at least 2, or -1 for a whole axis, got {kernel_size!r}")
    return WindowSpec(
        window,
        check_per_axis("stride", 1 if stride is None else stride, num_axes),
        check_per_axis("dilation", 1 if dilation is None else dilation, num_axes),
        check_flag_per_axis("is_causal", False if is_causal is None else is_causal, num_axes),
    )


def rescale_windows(
    base: Sequence[int], grid: Sequence[int], kernel_size: Sizes, stride: Sizes = 1, dilation: Sizes = 1
) -> WindowSpec:
    """Windows chosen for one grid, on another: each covers the same share of its axis.

    Along an axis of ``base`` tokens that becomes ``grid`` tokens long, a window of ``w`` becomes
    ``round(w * grid / base)``, at least 2 (a whole axis, -1 or ``w = base``, stays one), then dilation and
    stride are lowered where they no longer fit. Whoever runs one model at several resolutions calls it once
    for each of them::

        spec = rescale_windows((16, 44, 80), (16, 30, 52), (-1, 12, 24), stride=(1, 4, 8))
        y = na3d(q, k, v, spec.kernel_size, spec.stride, spec.dilation)

    Args:
        base: Size of the grid that the parameters were chosen for.
        grid: Size of the grid at hand, with as many axes.
        kernel_size: Tokens in a window on ``base``.
        stride: Neighbours in a group on ``base``.
        dilation: Distance between tokens of a window on ``base``.

    Returns:
        The parameters on ``grid``, not causal.

    Raises:
        ValueError: If the grids differ in axes, or the parameters do not fit ``base``.
    """
    if len(base) != len(grid) or any(length < 1 for length in (*base, *grid)):
        raise ValueError(
            f"base and grid must have as many axes, of at least one token, got base={tuple(base)}, "
            f"grid={tuple(grid)}"
        )
    old = window_spec(len(base), kernel_size, stride, dilation).on(base)
    window = tuple(
        WHOLE_AXIS if size == before else max(2, (2 * size * now + before) // (2 * before))
        for size, before, now in zip(old.kernel_size, base, grid, strict=True)
    )
    new = old._replace(kernel_size=window).clamped(grid)
    limits = (now if size == WHOLE_AXIS else size for size, now in zip(new.kernel_size, grid, strict=True))
    return new._replace(stride=tuple(map(min, new.stride, limits)))
