"""Feature maps with their parameters, chosen by name, as linear attention uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gatework.checks import check_choice, check_flags, check_positive, check_sizes
from gatework.ops import feature_maps as maps
from gatework.ops.recurrence.taylor_attention import taylor_feature_count


def _identity(x: Tensor) -> Tensor:
    return x


#: Maps of a token's channels to as many features.
_CHANNELWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "elu": maps.elu_features,
    "relu": maps.relu_features,
    "square": torch.square,
    "squared": maps.squared_features,
}
#: Maps to one feature per channel and sign.
_SIGNED: Mapping[str, Callable[..., Tensor]] = {
    "exp_dim": maps.exp_features,
    "exp_max_norm": maps.exp_max_norm_features,
    "softmax_dim": maps.softmax_features,
    "exp_sum_norm": maps.exp_sum_norm_features,
}
#: Every name that :class:`FeatureMap` takes.
FEATURE_MAPS = (*_CHANNELWISE, *_SIGNED, "taylor", "cosformer", "performer", "all_poly")


class FeatureMap(nn.Module):
    """``phi`` of linear attention, of queries and keys alike; formulas in :mod:`gatework.ops.feature_maps`.

    Args:
        name: One of :data:`FEATURE_MAPS`.
        input_dim: Channels of a head's queries and keys.
        num_features: Features of ``"performer"`` (256 by default) and ``"all_poly"`` (``input_dim``).
        both_signs: Whether ``"exp_dim"``, ``"exp_max_norm"``, ``"softmax_dim"`` and ``"exp_sum_norm"`` have
            features of ``x`` and of ``-x``, or of ``x`` alone.
        input_scale: Factor on the input.
        max_length: Tokens over which ``"cosformer"`` turns; later ones stay at its last angle.

    Attributes:
        num_features: Number of features.
        published_features: Number of features as Zoology counts them: one per channel for ``"performer"`` and
            the maps with two signs, symmetric Taylor terms once.
        reads_positions: Whether :meth:`forward` needs the positions of the tokens.

    Raises:
        ValueError: If a value is impossible or belongs to another map.
    """

    def __init__(
        self,
        name: str,
        input_dim: int,
        *,
        num_features: int | None = None,
        both_signs: bool = True,
        input_scale: float = 1.0,
        max_length: int = 2048,
    ) -> None:
        super().__init__()
        check_choice("feature_map", name, FEATURE_MAPS)
        check_sizes(input_dim=input_dim, max_length=max_length)
        check_flags(both_signs=both_signs)
        check_positive(input_scale=input_scale)
        if num_features is not None:
            check_sizes(num_features=num_features)
            if name not in ("performer", "all_poly"):
                raise ValueError(
                    f"num_features is for feature_map 'performer' or 'all_poly', "
                    f"got {num_features} for {name!r}"
                )
        if not both_signs and name not in _SIGNED:
            raise ValueError(f"both_signs=False is for feature_map {', '.join(_SIGNED)}, got {name!r}")
        self.name, self.input_dim, self.both_signs = name, input_dim, both_signs
        self.input_scale, self.max_length = input_scale, max_length
        self.reads_positions = name == "cosformer"
        self.num_features = self.published_features = input_dim
        if name in _SIGNED and both_signs:
            self.num_features = 2 * input_dim
        elif name == "taylor":
            self.num_features = 1 + input_dim + input_dim**2
            self.published_features = taylor_feature_count(input_dim)
        elif name == "cosformer":
            self.num_features = self.published_features = 2 * input_dim
        elif name == "performer":
            self.num_features = num_features or 256
            random_feats = maps.orthogonal_random_features(self.num_features, input_dim)
            self.register_buffer("random_feats", random_feats)
        elif name == "all_poly":
            self.num_features = self.published_features = num_features or input_dim
            self.proj_1 = nn.Linear(input_dim, self.num_features, bias=False)
            self.proj_2 = nn.Linear(input_dim, self.num_features, bias=False)
            for projection in (self.proj_1, self.proj_2):
                nn.init.normal_(projection.weight, std=input_dim**-0.5)

    def forward(
        self,
        x: Float[Tensor, "batch heads length dim"],
        positions: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch heads length features"]:
        """Map queries or keys to features, in at least float32.

        Args:
            x: Queries or keys.
            positions: Positions of the tokens, for a map that reads them; counted from 0 by default.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            x = x if self.input_scale == 1 else x * self.input_scale
            if self.name in _CHANNELWISE:
                return _CHANNELWISE[self.name](x)
            if self.name in _SIGNED:
                return _SIGNED[self.name](x, both_signs=self.both_signs)
            if self.name == "taylor":
                return maps.all_taylor_features(x)
            if self.name == "performer":
                return maps.performer_features(x, self.get_buffer("random_feats").to(x.dtype))
            if self.name == "all_poly":
                weights = (self.proj_1.weight.to(x.dtype), self.proj_2.weight.to(x.dtype))
                return maps.all_poly_features(x, *weights)
            if positions is None:
                positions = torch.arange(x.shape[2], device=x.device).expand(x.shape[0], -1)
            return maps.cosformer_features(x, positions, self.max_length)

    def extra_repr(self) -> str:
        """Name and sizes, for ``print(module)``."""
        return f"{self.name!r}, {self.input_dim} -> {self.num_features}"
