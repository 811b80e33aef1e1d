"""What generation carries: the states of the decoder's mixers."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from gatework.layers.sequence.mixer import State


@dataclass
class MixerCache:
    """One state per layer, and how many tokens they have seen."""

    states: list[State]
    length: int
    is_compileable: bool = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen."""
        return self.length

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """Keep the states of the sequences ``beam_idx``, in that order (beam search)."""
        self.states = [
            {name: tensor.index_select(0, beam_idx) for name, tensor in state.items()}
            for state in self.states
        ]
