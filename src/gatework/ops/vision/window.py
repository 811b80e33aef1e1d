"""Attention within the windows of a map, shifted or not, and between tokens spread evenly over it.

Swin's windows (arXiv:2103.14030, section 3.2) and MaxViT's grid (arXiv:2204.01697, section 3.2), on maps of
any size: no token of padding is ever attended to. The same patterns as :class:`gatework.masks.Windows` and
:class:`gatework.masks.Grid`, computed window by window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from gatework.checks import check_number, check_per_axis
from gatework.ops.attention import attention

_Queries = Float[Tensor, "batch heads height width head_dim"]
_Values = Float[Tensor, "batch heads height width value_dim"]
_Bias = Float[Tensor, "#heads tokens tokens"]
Sizes = int | tuple[int, int]


def window_partition(
    x: Float[Tensor, "batch height width channels"], window_size: Sizes
) -> Float[Tensor, "windows window_height window_width channels"]:
    """Cut a map with its channels last into windows, row by row; zeros fill up the last ones.

    Args:
        x: The map.
        window_size: Height and width of a window; a number for both.

    Returns:
        ``batch * ceil(height / window_height) * ceil(width / window_width)`` windows, those of the first
        map first.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than 1, or ``x`` is not a map.
    """
    height, width = check_per_axis("window_size", window_size, 2)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (batch, height, width, channels), got {tuple(x.shape)}")
    x = pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height))
    rows, columns = x.shape[1] // height, x.shape[2] // width
    x = x.reshape(x.shape[0], rows, height, columns, width, x.shape[3]).transpose(2, 3)
    return x.reshape(x.shape[0] * rows * columns, height, width, x.shape[5])


def window_reverse(
    windows: Float[Tensor, "windows window_height window_width channels"], height: int, width: int
) -> Float[Tensor, "batch height width channels"]:
    """Put windows together to maps of ``height`` and ``width``: undoes :func:`window_partition`.

    Raises:
        ValueError: If their number is no multiple of the number of windows in such a map.
    """
    if windows.ndim != 4 or min(windows.shape[1:3]) < 1:
        raise ValueError(
            f"windows must have shape (windows, height, width, channels), got {tuple(windows.shape)}"
        )
    count, window_height, window_width, channels = windows.shape
    rows, columns = -(-height // window_height), -(-width // window_width)
    if height < 1 or width < 1 or count % (rows * columns):
        raise ValueError(
            f"windows must be a multiple of {rows} * {columns}, for maps of {height} x {width}, got {count}"
        )
    shape = (count // (rows * columns), rows, columns, window_height, window_width, channels)
    x = windows.reshape(shape).transpose(2, 3)
    x = x.reshape(shape[0], rows * window_height, columns * window_width, channels)
    return x[:, :height, :width]


def relative_position_bias(
    table: Float[Tensor, "offsets heads"], window_size: Sizes
) -> Float[Tensor, "heads tokens tokens"]:
    """Look up the bias between the tokens of a window: ``bias[h, (y, x), (j, i)] = table[offset, h]``.

    The offset is ``(y - j + window_height - 1) * (2 * window_width - 1) + x - i + window_width - 1``, query
    minus key, which is the order of Swin's released tables (arXiv:2103.14030, equation 4).

    Args:
        table: ``(2 * window_height - 1) * (2 * window_width - 1)`` rows, one column per head.
        window_size: Height and width of the window, or the grid; a number for both.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If the table has another number of rows.
    """
    height, width = check_per_axis("window_size", window_size, 2)
    offsets = (2 * height - 1) * (2 * width - 1)
    if table.ndim != 2 or len(table) != offsets:
        raise ValueError(
            f"table must have {offsets} rows for windows of {height} x {width}, got {tuple(table.shape)}"
        )
    y, x = torch.arange(height, device=table.device), torch.arange(width, device=table.device)
    down, across = y[:, None] - y + height - 1, x[:, None] - x + width - 1
    index = down[:, None, :, None] * (2 * width - 1) + across[None, :, None, :]
    return table[index.reshape(height * width, height * width)].permute(2, 0, 1)


def window_attention_reference(
    q: _Queries,
    k: _Queries,
    v: _Values,
    *,
    window_size: Sizes,
    shift: Sizes = 0,
    bias: _Bias | None = None,
    scale: float | None = None,
) -> _Values:
    """The definition, over all pairs of tokens of the map; see :func:`window_attention`."""
    sizes = check_per_axis("window_size", window_size, 2)
    shifts = check_per_axis("shift", shift, 2, at_least=0)
    places = [
        ((torch.arange(length) - offset) // size, (torch.arange(length) - offset) % size)
        for length, size, offset in zip(q.shape[2:4], sizes, shifts, strict=True)
    ]
    return _among_equals(q, k, v, places, sizes[1], bias, scale)


def window_attention(
    q: _Queries,
    k: _Queries,
    v: _Values,
    *,
    window_size: Sizes,
    shift: Sizes = 0,
    bias: _Bias | None = None,
    scale: float | None = None,
) -> _Values:
    """Softmax attention within windows that do not overlap.

    ``softmax_j(scale * q_i . k_j + bias[i', j']) v_j`` over the tokens ``j`` of token ``i``'s window, where
    ``i'`` and ``j'`` are places in the window. Computes what :func:`window_attention_reference` defines.

    With a ``shift`` the first window of an axis ends after ``shift`` tokens, at its own last places: the same
    as rolling the map by ``-shift`` and masking, in the windows where its ends meet, what was not beside
    each other. Windows that reach beyond the map hold the tokens that exist; Swin's own code pads the map
    and lets tokens attend to the padding, which is the same for maps that are multiples of the window.

    Args:
        q: Queries, heads first.
        k: Keys.
        v: Values.
        window_size: Height and width of a window; a number for both.
        shift: How far windows are moved down and to the right; less than the window.
        bias: Bias between the places of a window, counted row by row, for each head or one for all; see
            :func:`relative_position_bias`.
        scale: Factor on ``q . k``, ``head_dim ** -0.5`` by default.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If shapes or sizes do not fit.
    """
    sizes = check_per_axis("window_size", window_size, 2)
    shifts = check_per_axis("shift", shift, 2, at_least=0)
    if any(offset >= size for offset, size in zip(shifts, sizes, strict=True)):
        raise ValueError(f"shift must be less than window_size={window_size}, got {shift}")
    _check(q, k, v, sizes, bias, scale)
    down, across = (
        _WindowAxis(length, size, offset)
        for length, size, offset in zip(q.shape[2:4], sizes, shifts, strict=True)
    )
    return _by_parts(q, k, v, down, across, bias, scale)


def grid_attention_reference(
    q: _Queries,
    k: _Queries,
    v: _Values,
    *,
    grid_size: Sizes,
    bias: _Bias | None = None,
    scale: float | None = None,
) -> _Values:
    """The definition, over all pairs of tokens of the map; see :func:`grid_attention`."""
    sizes = check_per_axis("grid_size", grid_size, 2)
    places = []
    for length, size in zip(q.shape[2:4], sizes, strict=True):
        period = max(1, -(-length // size))
        places.append((torch.arange(length) % period, torch.arange(length) // period))
    return _among_equals(q, k, v, places, sizes[1], bias, scale)


def grid_attention(
    q: _Queries,
    k: _Queries,
    v: _Values,
    *,
    grid_size: Sizes,
    bias: _Bias | None = None,
    scale: float | None = None,
) -> _Values:
    """Softmax attention among the tokens that have the same place in the cells of a grid.

    The map is cut into ``grid_size`` cells, of ``ceil(length / grid_size)`` tokens along an axis, and tokens
    attend to those at the same place of all cells: global, and as cheap as windows. The last cells of a map
    that is no multiple of the grid lack tokens. Computes what :func:`grid_attention_reference` defines.

    Args:
        q: Queries, heads first.
        k: Keys.
        v: Values.
        grid_size: Cells along height and width; a number for both.
        bias: Bias between cells, counted row by row, for each head or one for all; see
            :func:`relative_position_bias`.
        scale: Factor on ``q . k``, ``head_dim ** -0.5`` by default.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If shapes or sizes do not fit.
    """
    sizes = check_per_axis("grid_size", grid_size, 2)
    _check(q, k, v, sizes, bias, scale)
    down, across = (_GridAxis(length, size) for length, size in zip(q.shape[2:4], sizes, strict=True))
    return _by_parts(q, k, v, down, across, bias, scale)


class _WindowAxis(NamedTuple):
    """An axis of ``length`` tokens in windows of ``size``, of which the first ends after ``shift`` tokens."""

    length: int
    size: int
    shift: int

    def parts(self) -> list[tuple[int, int, int]]:
        """Windows, tokens of a window and place of the first: cut at the start, whole, cut at the end."""
        head = min(self.shift, self.length)
        whole, tail = divmod(self.length - head, self.size)
        first = self.size - self.shift
        every = [(1, head, first), (whole, self.size, 0), (1, tail, 0)]
        return [(count, tokens, place) for count, tokens, place in every if count * tokens]

    def split(self, tensor: Tensor, dim: int) -> list[Tensor]:
        """The parts of a map, with (windows, tokens of a window) in place of the axis."""
        parts = self.parts()
        pieces = torch.split_with_sizes(tensor, [count * tokens for count, tokens, _ in parts], dim)
        return [piece.unflatten(dim, part[:2]) for piece, part in zip(pieces, parts, strict=True)]

    def join(self, pieces: list[Tensor], dim: int) -> Tensor:
        """Undo :meth:`split`."""
        return torch.cat([piece.flatten(dim, dim + 1) for piece in pieces], dim)


class _GridAxis(NamedTuple):
    """An axis of ``length`` tokens in ``size`` cells; tokens with the same place in their cells meet."""

    length: int
    size: int

    def _cells(self) -> tuple[int, int, int]:
        """Tokens of a cell, cells that have any, and tokens of the last of them."""
        period = -(-self.length // self.size)
        cells = -(-self.length // max(period, 1))
        return period, cells, self.length - (cells - 1) * period if cells else 0

    def parts(self) -> list[tuple[int, int, int]]:
        """Places, their tokens and first cell: of places that the last cell has, and of those it lacks."""
        period, cells, last = self._cells()
        every = [(last, cells, 0), (period - last, cells - 1, 0)]
        return [part for part in every if part[0] > 0]

    def split(self, tensor: Tensor, dim: int) -> list[Tensor]:
        """The parts of a map, with (places, cells) in place of the axis."""
        period, cells, last = self._cells()
        full = (
            _lengthened(tensor, dim, cells * period).unflatten(dim, (cells, period)).transpose(dim, dim + 1)
        )
        pieces = [full.narrow(dim, 0, last), full.narrow(dim, last, period - last)]
        kept = zip(pieces, self.parts(), strict=False)
        return [piece.narrow(dim + 1, 0, tokens) for piece, (_, tokens, _) in kept]

    def join(self, pieces: list[Tensor], dim: int) -> Tensor:
        """Undo :meth:`split`."""
        _, cells, _ = self._cells()
        full = torch.cat([_lengthened(piece, dim + 1, cells) for piece in pieces], dim)
        return full.transpose(dim, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, self.length)


def _lengthened(tensor: Tensor, dim: int, length: int) -> Tensor:
    """The tensor with zeros at the end of one axis."""
    return pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, length - tensor.shape[dim]))


_Axis = _WindowAxis | _GridAxis


def _by_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    down: _Axis,
    across: _Axis,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention within all groups: one call for all that are equally large, with no padding and no mask."""
    if not (q.shape[2] and q.shape[3]):
        return v.clone()
    split = [[across.split(piece, 4) for piece in down.split(tensor, 2)] for tensor in (q, k, v)]
    rows = []
    for row, (_, height, top) in enumerate(down.parts()):
        columns = []
        for column, (_, width, left) in enumerate(across.parts()):
            # (batch, heads, groups down, height, groups across, width, dim)
            groups = [part[row][column].permute(0, 2, 4, 1, 3, 5, 6) for part in split]
            shape = groups[0].shape[:6]
            tokens = (group.flatten(0, 2).flatten(2, 3) for group in groups)
            own = None
            if bias is not None:
                own = _part_of_bias(bias, (down.size, across.size), (top, left), (height, width))
            mixed = attention(*tokens, bias=own, scale=scale)
            mixed = mixed.unflatten(2, shape[4:]).unflatten(0, shape[:3])
            columns.append(mixed.permute(0, 3, 1, 4, 2, 5, 6))
        rows.append(across.join(columns, 4))
    return down.join(rows, 2)


def _part_of_bias(
    bias: Tensor, sizes: tuple[int, int], first: tuple[int, int], lengths: tuple[int, int]
) -> Tensor:
    """The bias between the places of a window that a part of the map has."""
    if sizes == lengths:
        return bias
    y, x = (
        torch.arange(start, start + length, device=bias.device)
        for start, length in zip(first, lengths, strict=True)
    )
    places = (y[:, None] * sizes[1] + x).flatten()
    return bias[:, places[:, None], places]


def _among_equals(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups_and_places: list[tuple[Tensor, Tensor]],
    width: int,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Attention over all pairs of tokens that are in the same group along both axes."""
    (rows, y), (columns, x) = groups_and_places
    same = (rows[:, None] == rows)[:, None, :, None] & (columns[:, None] == columns)[None, :, None, :]
    tokens = len(rows) * len(columns)
    place = (y[:, None] * width + x).flatten()
    scores = torch.einsum("bnid,bnjd->bnij", q.flatten(2, 3), k.flatten(2, 3))
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias[:, place[:, None], place]
    scores = scores.masked_fill(~same.reshape(tokens, tokens), -torch.inf)
    mixed: Tensor = (scores.softmax(-1) @ v.flatten(2, 3)).unflatten(2, q.shape[2:4])
    return mixed


def _check(
    q: Tensor, k: Tensor, v: Tensor, sizes: tuple[int, ...], bias: Tensor | None, scale: float | None
) -> None:
    """Refuse maps and a bias that do not belong together, and a scale that is no number."""
    if scale is not None:
        check_number("scale", scale)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(
                f"{name} must have shape (batch, heads, height, width, dim), got {tuple(tensor.shape)}"
            )
    if q.shape != k.shape or k.shape[:4] != v.shape[:4]:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        raise ValueError(f"q, k and v must be maps of one size, got {shapes}")
    tokens = sizes[0] * sizes[1]
    if bias is not None and (bias.ndim != 3 or bias.shape[1:] != (tokens, tokens)):
        raise ValueError(f"bias must have shape (heads, {tokens}, {tokens}), got {tuple(bias.shape)}")
    if bias is not None and bias.shape[0] not in (1, q.shape[1]):
        raise ValueError(f"bias must have 1 head or heads={q.shape[1]}, got {bias.shape[0]}")
