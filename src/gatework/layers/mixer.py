"""The one interface of every sequence mixer: parallel over a sequence, or token by token with a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: What decoding carries between tokens: tensors whose first axis is the batch, by name.
State = dict[str, Tensor]


class Mixer(nn.Module):
    """A causal map from ``(batch, length, channels)`` to the same shape that mixes along ``length``.

    Subclasses take the number of channels first and options by keyword, and implement

    - :meth:`forward`: the whole sequence at once, as in training;
    - :meth:`initial_state` and :meth:`prefill`: any stretch after a state, as in decoding, same result;
    - :meth:`state_size`: how many elements :meth:`step` carries after a number of tokens;
    - :meth:`step`, where one token can be had for less than a stretch of one.

    Attributes:
        dim: Number of channels.
        official_names: The authors' parameter names (theirs: ours) where they differ.
    """

    official_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        raise NotImplementedError

    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the state before the first token, in the dtype and on the device of the parameters."""
        raise NotImplementedError

    def prefill(
        self, x: Float[Tensor, "batch length channels"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch length channels"], State]:
        """Read a stretch of tokens in parallel after ``state``, or from the start.

        Returns:
            What :meth:`forward` would give at these tokens, and the new state; the given one is not changed.
        """
        raise NotImplementedError

    def step(
        self, x: Float[Tensor, "batch channels"], state: State
    ) -> tuple[Float[Tensor, "batch channels"], State]:
        """Mix the next token: :meth:`prefill` of one, which mixers with a cheaper way override."""
        y, state = self.prefill(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def state_size(self, length: int) -> int:
        """Return the number of elements, per sequence, that ``step`` carries after ``length`` tokens."""
        raise NotImplementedError

    def convert_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map a state dict in the authors' layout to ours; mixers override it where tensors change shape."""
        return {self.official_names.get(name, name): tensor for name, tensor in state_dict.items()}

    def _new_zeros(self, *shape: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
        """Zeros like the parameters, for :meth:`initial_state`."""
        like = next(self.parameters())
        return torch.zeros(shape, device=device or like.device, dtype=dtype or like.dtype)


def check_divisible(dim: int, num_heads: int, *, dim_name: str = "dim", heads_name: str = "num_heads") -> int:
    """Return ``dim // num_heads``.

    Raises:
        ValueError: If there is no head, or ``num_heads`` does not divide ``dim``.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{heads_name} must be positive and divide {dim_name}={dim}, got {num_heads}")
    return dim // num_heads
