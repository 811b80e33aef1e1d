"""The one interface of every sequence mixer: parallel over a sequence, or token by token with a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gatework.checks import check_int, check_number
from gatework.layers.sequence.packed_documents import PackedDocuments
from gatework.layouts import Layout, to_ours

#: What decoding carries between tokens: tensors whose first axis is the batch, by name.
State = dict[str, Tensor]


@dataclass(frozen=True)
class StateTensor:
    """What one tensor of a :data:`State` looks like.

    Attributes:
        shape: Its shape without the batch axis; ``None`` for an axis that grows with the tokens read.
        dtype: ``"same"`` as the parameters, ``"wide"`` for at least float32 (sums over many tokens),
            ``"integer"`` for token ids and counts.
    """

    shape: tuple[int | None, ...]
    dtype: Literal["same", "wide", "integer"] = "same"

    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Zeros for ``batch_size`` sequences whose parameters have ``dtype``; growing axes are empty."""
        wide = torch.promote_types(dtype, torch.float32)
        kinds = {"same": dtype, "wide": wide, "integer": torch.int64}
        shape = (batch_size, *(0 if size is None else size for size in self.shape))
        return torch.zeros(shape, dtype=kinds[self.dtype], device=device)

    def check(self, name: str, tensor: Tensor, batch_size: int) -> None:
        """Refuse a tensor of another shape or kind of numbers.

        Raises:
            ValueError: The message names the tensor, its shape or dtype, and what was expected.
        """
        expected = (batch_size, *self.shape)
        fits = tensor.ndim == len(expected) and all(
            size is None or size == given for size, given in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            sizes = ", ".join("any" if size is None else str(size) for size in expected)
            raise ValueError(f"state[{name!r}] must have shape ({sizes}), got {tuple(tensor.shape)}")
        kind = "integer" if self.dtype == "integer" else "floating"
        if kind != _kind_of(tensor.dtype):
            raise ValueError(f"state[{name!r}] must be of a {kind} dtype, got {tensor.dtype}")


def _kind_of(dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return "complex" if dtype.is_complex else "floating"
    return "boolean" if dtype == torch.bool else "integer"


class Mixer(nn.Module):
    """A causal map from ``(batch, length, channels)`` to the same shape that mixes along ``length``.

    Subclasses take the number of channels first and options by keyword, and implement

    - :meth:`forward`: the whole sequence at once, as in training;
    - :meth:`state_layout` and :meth:`prefill`: any stretch after a state, as in decoding, same result;
    - :meth:`state_size`: how many elements :meth:`step` carries after a number of tokens;
    - :meth:`step`, where one token can be had for less than a stretch of one.

    Attributes:
        dim: Number of channels.
        official_names: The authors' parameter names (theirs: ours) where they differ; :attr:`layouts` is made
            of them. A mixer with more to say, tensors that change shape or several layouts, overrides that.
        reads_tokens: Whether :meth:`forward`, :meth:`prefill` and :meth:`step` also take the token ids, as
            the keyword ``tokens`` of shape ``(batch, length)`` (``(batch,)`` in a step).
        residual_outputs: Dotted names of the submodules, ``nn.Linear`` layers, whose output is what the mixer
            adds to the residual stream; a model shrinks their initial weights with its depth. Where these
            start otherwise than PyTorch's, the layer's attribute ``draw_weight`` is the function that draws
            them in place.
    """

    official_names: ClassVar[Mapping[str, str]] = {}
    reads_tokens: ClassVar[bool] = False
    residual_outputs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, at_least=1)

    def forward(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """Mix a whole sequence."""
        raise NotImplementedError

    def forward_documents(
        self,
        x: Float[Tensor, "rows length channels"],
        documents: PackedDocuments,
        *,
        tokens: Int[Tensor, "rows length"] | None = None,
    ) -> Float[Tensor, "rows length channels"]:
        """Mix documents that are packed into rows, each as :meth:`forward` mixes it alone.

        Here documents are grouped into a few batches, padded on the right, which no output sees;
        mixers with a cheaper way override it.

        Args:
            x: The rows.
            documents: Where the documents are in them.
            tokens: Token ids, for mixers that read them.

        Returns:
            The mixed rows, zero at padding.
        """
        parts = documents.group(x)
        if not self.reads_tokens or tokens is None:
            return documents.ungroup([self(part) for part in parts])
        read = zip(parts, documents.group(tokens), strict=True)
        return documents.ungroup([self(part, tokens=ids) for part, ids in read])

    def state_layout(self) -> dict[str, StateTensor]:
        """Describe the tensors of the state by name."""
        raise NotImplementedError

    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the state before the first token, in the dtype and on the device of the parameters."""
        like = next(self.parameters())
        device, dtype = device or like.device, dtype or like.dtype
        layout = self.state_layout()
        return {name: tensor.initial(batch_size, device, dtype) for name, tensor in layout.items()}

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

    def published_state_size(self, length: int) -> int | None:
        """Return the state as the mixer's paper (or Zoology) counts it, in elements; ``None`` if it does not.

        Published figures use these counts, which may differ from what decoding carries (:meth:`state_size`).
        """
        return None

    def auxiliary_loss(self, x: Float[Tensor, "batch length channels"]) -> Float[Tensor, ""] | None:
        """Return what training adds to the loss for the input ``x``; most mixers add nothing."""
        return None

    def auxiliary_loss_of_documents(
        self, x: Float[Tensor, "rows length channels"], documents: PackedDocuments
    ) -> Float[Tensor, ""] | None:
        """Return the mean of :meth:`auxiliary_loss` over packed documents, each weighted by its tokens."""
        if type(self).auxiliary_loss is Mixer.auxiliary_loss:
            return None
        weighted = []
        for part in documents.concatenate(x).split(documents.lengths, 1):
            loss = self.auxiliary_loss(part)
            if loss is None:
                return None
            weighted.append(loss * (part.shape[1] / documents.num_tokens))
        return torch.stack(weighted).sum() if weighted else None

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The layouts of weights that are not ours."""
        return (Layout.of_names(self.official_names),) if self.official_names else ()

    def convert_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map a state dict, or gradients, in one of :attr:`layouts` to ours.

        Raises:
            ValueError: If two layouts fit, or tensors cannot be converted.
        """
        return to_ours(self.layouts, state_dict)

    def _after(self, state: State | None, x: Tensor) -> State:
        """Return the checked ``state`` that the sequences ``x`` continue, or the initial one for ``None``.

        Raises:
            ValueError: If the state has other tensors, shapes or kinds of numbers than this mixer's.
        """
        if state is None:
            return self.initial_state(x.shape[0], device=x.device)
        layout = self.state_layout()
        if state.keys() != layout.keys():
            raise ValueError(f"state must hold {sorted(layout)}, got {sorted(state)}")
        for name, tensor in layout.items():
            tensor.check(name, state[name], x.shape[0])
        return state


def expanded(name: str, ratio: float, dim: int) -> int:
    """Return ``int(ratio * dim)``, a width that is given as a share of the number of channels.

    Raises:
        TypeError: If ``ratio`` is not a number.
        ValueError: If it is not positive and finite, or leaves no channel.
    """
    width = int(check_number(name, ratio, above=0) * dim)
    if width < 1:
        raise ValueError(f"{name} must leave at least one of dim={dim} channels, got {ratio}")
    return width
