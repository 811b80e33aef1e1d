"""Filters that a network computes, kept between calls that need no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class FilterCache:
    """Remembers the taps of one filter as long as what they were computed from stays the same.

    A filter network sees positions only, so that decoding would compute the same taps for every token. What
    it is made of is small, and is compared by content with a copy in every call: versions would miss a
    change through ``.data``. Where gradients are needed, where a graph is traced, and on devices that the
    comparison would have to wait for, nothing is remembered.

    A copied or unpickled cache is empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[list[Tensor], Tensor] | None = None

    def taps(
        self,
        length: int,
        compute: Callable[[int], Tensor],
        *,
        sources: Sequence[Tensor],
        max_length: int,
    ) -> Float[Tensor, "channels taps"]:
        """Return ``compute(length)``, which may be remembered.

        Args:
            length: Number of taps.
            compute: Makes that many taps of shape ``(channels, taps)``; a tap must not depend on the number.
            sources: All tensors that ``compute`` reads.
            max_length: Most taps that there are.
        """
        if not _may_remember(sources):
            return compute(length)
        kept = self._kept  # one look: another thread may replace it
        if kept is None or kept[1].shape[1] < length or not _same(kept[0], sources):
            # Decoding asks for one more tap each time: twice as many now are a few calls in all. Tensors made
            # in inference mode could not take part in a later call that records gradients of its input.
            with torch.inference_mode(False), torch.no_grad():
                copies = [source.detach().clone() for source in sources]
                kept = copies, compute(min(max(2 * length, 64), max(max_length, length)))
            self._kept = kept
        return kept[1][:, :length]

    def __reduce__(self) -> tuple[type[FilterCache], tuple[()]]:
        return FilterCache, ()


def _may_remember(sources: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
        return False
    # Other classes stand for tensors without content.
    return all(
        type(source) in (Tensor, torch.nn.Parameter) and source.device.type == "cpu" for source in sources
    )


def _same(kept: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    return len(kept) == len(sources) and all(
        old.dtype == new.dtype and torch.equal(old, new) for old, new in zip(kept, sources, strict=True)
    )
