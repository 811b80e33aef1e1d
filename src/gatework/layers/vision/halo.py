"""Halo attention as a layer of vision networks, with the names of the weights that are in circulation."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, linear

from gatework.checks import (
    check_choice,
    check_counts,
    check_divides,
    check_flags,
    check_positive,
    check_sizes,
)
from gatework.ops.vision.halo import halo_attention


class HaloAttention(nn.Module):
    """Halo attention of an image: ``y = halo_attention(W_q x, W_k x, W_v x)`` (arXiv:2103.12731, section 3).

    There is no output projection. Weights are those of the released networks (timm's ``HaloAttn``):
    ``q.weight``, ``kv.weight`` with keys and values of a head side by side, and the tables
    ``pos_embed.height_rel`` and ``pos_embed.width_rel``, which all heads share. A table belongs to one block
    and halo: row ``o + halo + window - 1`` holds offset ``o``.

    Args:
        dim: Number of input channels.
        dim_out: Number of output channels, ``dim`` by default.
        num_heads: Number of heads; divides ``dim_out``.
        head_dim: Channels of queries and keys of a head; by default ``qk_ratio * dim_out``, rounded to a
            multiple of 8 as in the released networks, over ``num_heads``.
        block_size: Height and width of a block of pixels that shares its keys.
        halo_size: How far the window of keys reaches beyond the block.
        stride: 1, or 2 to halve height and width. An even block then holds every second query
            (strided self-attention, section 3.2 there); an odd one is averaged over 2 x 2 outputs.
        qk_ratio: Width of queries and keys over ``dim_out``, where ``head_dim`` is not given.
        avg_down: Average with a stride of 2 also where the block is even.
        qkv_bias: Whether queries, keys and values have a bias.
        scale_pos_embed: Whether position logits are scaled as the content logits are.
        padding_mode: See :func:`gatework.ops.vision.halo.halo_attention`.

    Raises:
        ValueError: If heads do not divide, or a number is out of range.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        qk_ratio: float = 1.0,
        avg_down: bool = False,
        qkv_bias: bool = False,
        scale_pos_embed: bool = False,
        padding_mode: Literal["zeros", "mask"] = "zeros",
    ) -> None:
        super().__init__()
        dim_out = dim if dim_out is None else dim_out
        check_sizes(dim=dim, dim_out=dim_out, block_size=block_size)
        check_counts(halo_size=halo_size)
        if head_dim is not None:
            check_sizes(head_dim=head_dim)
        check_positive(qk_ratio=qk_ratio)
        check_choice("stride", stride, (1, 2))
        check_choice("padding_mode", padding_mode, ("zeros", "mask"))
        check_flags(avg_down=avg_down, qkv_bias=qkv_bias, scale_pos_embed=scale_pos_embed)
        self.dim, self.dim_out, self.num_heads = dim, dim_out, num_heads
        self.value_dim = check_divides("num_heads", num_heads, "dim_out", dim_out)
        self.head_dim = _round_to_8(dim_out * qk_ratio) // num_heads if head_dim is None else head_dim
        if self.head_dim < 1:
            raise ValueError(
                f"qk_ratio must leave each of {num_heads} heads a channel of {dim_out}, got {qk_ratio}"
            )
        self.block_size, self.halo_size = block_size, halo_size
        self.average = stride == 2 and (avg_down or block_size % 2 == 1)
        self.query_stride = 1 if self.average else stride
        self.scale_pos_embed, self.padding_mode = scale_pos_embed, padding_mode
        self.q = nn.Conv2d(dim, num_heads * self.head_dim, 1, stride=self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * (self.head_dim + self.value_dim), 1, bias=qkv_bias)
        self.pos_embed = RelativePositions(block_size + 2 * halo_size, self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights: truncated normal, of deviation ``dim ** -0.5`` (projections)."""
        for projection in (self.q, self.kv):
            nn.init.trunc_normal_(projection.weight, std=self.dim**-0.5)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        self.pos_embed.reset_parameters()

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """Mix the pixels of a map of any size; with a stride of 2 its sides are halved and rounded up."""
        if x.shape[1] != self.dim:
            raise ValueError(f"x must have {self.dim} channels, got shape {tuple(x.shape)}")
        q, k, v = self._project(x.permute(0, 2, 3, 1))
        y = halo_attention(
            q,
            k,
            v,
            block_size=self.block_size,
            halo_size=self.halo_size,
            rel_height=self.pos_embed.height_rel,
            rel_width=self.pos_embed.width_rel,
            scale_pos_embed=self.scale_pos_embed,
            padding_mode=self.padding_mode,
            stride=self.query_stride,
        )
        y = y.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return avg_pool2d(y, 2, ceil_mode=True) if self.average else y

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, heads first, from pixels with their channels last."""
        x = x.contiguous()
        strided = x[:, :: self.query_stride, :: self.query_stride]
        maps = (linear(y, w.weight.flatten(1), w.bias) for y, w in ((strided, self.q), (x, self.kv)))
        q, kv = (y.unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for y in maps)
        return q, *torch.split_with_sizes(kv, [self.head_dim, self.value_dim], -1)


class RelativePositions(nn.Module):
    """Two tables of position vectors, one per vertical and one per horizontal offset within a window.

    Args:
        window_size: Rows and columns of the window; offsets are ``1 - window_size ... window_size - 1``.
        head_dim: Channels of a vector.
    """

    def __init__(self, window_size: int, head_dim: int) -> None:
        super().__init__()
        check_sizes(window_size=window_size, head_dim=head_dim)
        self.height_rel = nn.Parameter(torch.empty(2 * window_size - 1, head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * window_size - 1, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new vectors: truncated normal, of deviation ``head_dim ** -0.5``."""
        for table in (self.height_rel, self.width_rel):
            nn.init.trunc_normal_(table, std=table.shape[1] ** -0.5)


def _round_to_8(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and at least nine tenths of ``channels`` (timm's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
