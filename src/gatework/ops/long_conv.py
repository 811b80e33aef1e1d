"""Causal long convolution: every output mixes all earlier inputs through one filter per channel.

The global mixing of long convolutions, Hyena, H3 and BaseConv (arXiv:2302.06646, section 2;
arXiv:2302.10866, section 3; arXiv:2312.04927, section 4).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_int

#: Points that one thread transforms at once: a megabyte in single precision, and as much for the spectra.
_BLOCK_POINTS = 2**18
#: Fewer long sequences do not repay that every call prepares a table of its transform.
_LEAST_ROWS = 16


def causal_conv_reference(
    x: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels taps"],
) -> Float[Tensor, "batch length channels"]:
    """The definition, term by term: ``y[b, t, c] = sum_{s <= t} kernel[c, s] * x[b, t - s, c]``."""
    y = torch.zeros_like(x)
    for s in range(min(kernel.shape[1], x.shape[1])):
        y[:, s:] += kernel[:, s] * x[:, : x.shape[1] - s]
    return y


def causal_conv(
    x: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels taps"],
) -> Float[Tensor, "batch length channels"]:
    """Convolve each channel with its own causal filter, in O(length log length).

    Computes what :func:`causal_conv_reference` defines. Rounding in the FFT reaches every output, earlier
    ones too, at the size of the precision (1e-6 of the largest value in float32).

    Args:
        x: Input sequence, any floating dtype; half precisions are convolved in float32.
        kernel: One filter per channel; ``kernel[:, 0]`` weighs the present.

    Returns:
        The mixed sequence, in the dtype of ``x``.

    Raises:
        ValueError: If ``kernel`` has another number of channels than ``x``, or no tap.
    """
    _check_kernel(x, kernel)
    length = x.shape[1]
    if x.numel() == 0:
        return x.clone()  # FFT libraries refuse empty batches
    # Taps beyond the input reach no output, and in a circular convolution would reach earlier ones.
    kernel = kernel[:, :length]
    compute = torch.promote_types(x.dtype, torch.float32)
    size = _fft_size(length + kernel.shape[1] - 1)
    # FFTs along the innermost axis are twice as fast as along the middle one, for the price of a transpose.
    rows, kernel = x.to(compute).transpose(1, 2), kernel.to(compute)
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or kernel.requires_grad)
    y: Tensor
    if needs_grad or x.device.type != "cpu" or torch.compiler.is_compiling():
        y = _FourierConv.apply(rows, kernel, size)
    else:
        y = _conv_in_blocks(rows, kernel, size)
    return y.transpose(1, 2).to(x.dtype)


def _conv_in_blocks(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """What :class:`_FourierConv` computes, for a few channels or sequences at a time.

    The spectra of a block stay in a processor's cache, and in memory that the next block uses again: one
    large transform spends half of its time on memory that was never touched before.
    """
    batch, channels, length = x.shape
    rows = torch.get_num_threads() * max(_LEAST_ROWS, _BLOCK_POINTS // size)
    y = x.new_empty(x.shape)
    some_channels, some_sequences = min(rows, channels), min(batch, max(1, rows // channels))
    # Filled up with zeros once: padding what is not in the order of memory takes as long as its transform.
    padded = x.new_zeros(some_sequences, some_channels, size)
    for some in _cuts(channels, some_channels):
        filters = torch.fft.rfft(kernel[some], n=size)
        for few in _cuts(batch, some_sequences):
            part = x[few, some]
            block = padded[: part.shape[0], : part.shape[1]]
            block[..., :length] = part
            spectrum = torch.fft.rfft(block).mul_(filters)
            y[few, some] = torch.fft.irfft(spectrum, n=size)[..., :length]
    return y


def _cuts(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]


class _FourierConv(torch.autograd.Function):
    """Circular convolution of ``(batch, channels, length)`` with ``(channels, taps)``, cut to ``length``.

    PyTorch differentiates a real transform by a complex one, which is twice the work; the gradients here are
    products of real transforms, and that of the filter is summed over the batch before it is transformed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, size: int) -> Tensor:
        x_spectrum, kernel_spectrum = torch.fft.rfft(x, n=size), torch.fft.rfft(kernel, n=size)
        ctx.save_for_backward(x, kernel, x_spectrum, kernel_spectrum)
        ctx.size = size
        y: Tensor = torch.fft.irfft(x_spectrum * kernel_spectrum, n=size)[..., : x.shape[-1]]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel, x_spectrum, kernel_spectrum = ctx.saved_tensors
        size = ctx.size
        if torch.is_grad_enabled():  # somebody will differentiate this once more
            x_spectrum, kernel_spectrum = torch.fft.rfft(x, n=size), torch.fft.rfft(kernel, n=size)
        spectrum = torch.fft.rfft(grad, n=size)
        grad_x = grad_kernel = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.fft.irfft(spectrum * kernel_spectrum.conj(), n=size)[..., : x.shape[-1]]
        if ctx.needs_input_grad[1]:
            products = (spectrum * x_spectrum.conj()).sum(0)
            grad_kernel = torch.fft.irfft(products, n=size)[..., : kernel.shape[-1]]
        return grad_x, grad_kernel, None


def causal_conv_tail(
    x: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels taps"],
    count: int,
) -> Float[Tensor, "batch count channels"]:
    """Return the last ``count`` outputs of :func:`causal_conv`, as streaming needs them.

    One output is a plain sum over the filter's reach, O(length); several share one transform.

    Args:
        x: Earlier and new inputs, the latest last.
        kernel: One filter per channel; ``kernel[:, 0]`` weighs the present.
        count: How many outputs to return, at most ``length``.

    Raises:
        ValueError: If ``count`` is not between 0 and ``length``, or ``kernel`` does not fit ``x``.
    """
    length = x.shape[1]
    check_int("count", count, at_least=0, at_most=length)
    if count != 1:
        return causal_conv(x, kernel)[:, length - count :]
    _check_kernel(x, kernel)
    reach = min(length, kernel.shape[1])
    compute = torch.promote_types(x.dtype, torch.float32)
    latest = x[:, length - reach :].to(compute)
    return (latest * kernel[:, :reach].flip(1).T.to(compute)).sum(1, keepdim=True).to(x.dtype)


def _check_kernel(x: Tensor, kernel: Tensor) -> None:
    channels = x.shape[2]
    if kernel.ndim != 2 or kernel.shape[0] != channels or kernel.shape[1] == 0:
        raise ValueError(
            f"kernel must have shape (channels={channels}, taps>=1) to match x, got {tuple(kernel.shape)}"
        )


def _fft_size(minimum: int) -> int:
    """Return an even size of at least ``minimum`` whose prime factors are 2, 3 and 5.

    Unlike SciPy's ``next_fast_len`` it is plain arithmetic, which ``torch.compile`` can follow.
    """
    sizes = []
    for size in (2, 6, 10, 18, 30, 54, 90):
        while size < minimum:
            size *= 2
        sizes.append(size)
    return min(sizes)
