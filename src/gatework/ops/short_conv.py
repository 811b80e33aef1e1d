"""Causal short convolution: each channel mixes a few of its latest tokens with its own taps.

The local mixing of BaseConv, Hyena, Mamba-2 and gated linear attention (arXiv:2302.10866, section 3.1;
arXiv:2312.04927, section 4). For filters as long as the sequence see :mod:`gatework.ops.long_conv`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def short_conv_reference(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch length channels"]:
    """The definition: ``y[b, t, c] = bias[c] + sum_{s <= t} weight[c, taps - 1 - s] * x[b, t - s, c]``."""
    y = torch.zeros_like(x) if bias is None else bias.expand_as(x).clone()
    length, taps = x.shape[1], weight.shape[1]
    for s in range(min(taps, length)):
        y[:, s:] += weight[:, taps - 1 - s] * x[:, : length - s]
    return y


def short_conv(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels taps"],
    bias: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, "batch length channels"]:
    """Convolve each channel with its own few taps, the last of which weighs the present.

    Computes what :func:`short_conv_reference` defines in O(length * taps), as a depthwise convolution.

    Args:
        x: Input sequence, any floating dtype, in which the convolution is computed.
        weight: Taps per channel in the order of ``nn.Conv1d``: ``weight[:, -1]`` weighs the present token.
        bias: Constant added per channel.

    Returns:
        The mixed sequence, in the dtype of ``x``.

    Raises:
        ValueError: If ``weight`` has another number of channels than ``x``, or no tap, or ``bias`` another
            number of channels.
    """
    length, channels = x.shape[1:]
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(
            f"weight must have shape (channels={channels}, taps>=1) to match x, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape (channels={channels},) to match x, got {tuple(bias.shape)}")
    if x.numel() == 0:
        return x.clone()  # convolutions refuse an empty sequence
    weight = weight[:, -length:]  # earlier taps would only meet the padding
    padded = F.pad(x, (0, 0, weight.shape[1] - 1, 0))
    # Seen as an image of one row whose channels are innermost, x needs no transposed copy, and CPU
    # convolutions are several times faster than conv1d on (batch, channels, length).
    y = F.conv2d(
        padded.transpose(1, 2).unsqueeze(2),
        weight.to(x.dtype)[:, None, None],
        None if bias is None else bias.to(x.dtype),
        groups=channels,
    )
    return y.squeeze(2).transpose(1, 2).to(x.dtype)
