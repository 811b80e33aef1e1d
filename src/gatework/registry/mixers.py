"""Sequence mixers by name. Light: listing reads the table below, and making one imports its module alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gatework.checks import check_names, suggestion
from gatework.registry.plugins import load_entry_points

if TYPE_CHECKING:
    from gatework.layers.sequence.mixer import Mixer


@dataclass(frozen=True)
class MixerEntry:
    """One registered sequence mixer.

    Attributes:
        name: What users type.
        target: ``"module:Class"``, imported when the mixer is made, or the factory itself.
        summary: One line for listings.
        source: Paper and section the definition comes from.
        state: How many elements decoding carries per sequence, as a formula: ``L`` is the number of tokens
            read, ``d`` the number of channels; the others are the mixer's options.
        cost: How the time of a whole sequence grows, likewise.
    """

    name: str
    target: str | Callable[..., Mixer]
    summary: str
    source: str
    state: str = ""
    cost: str = ""

    def load(self) -> Callable[..., Mixer]:
        """Import and return the factory."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        factory: Callable[..., Mixer] = getattr(importlib.import_module(module), attribute)
        return factory


_MIXERS: dict[str, MixerEntry] = {
    entry.name: entry
    for entry in (
        MixerEntry(
            "attention",
            "gatework.layers.sequence.attention:MultiHeadAttention",
            "causal multi-head softmax attention, optional RoPE and grouped heads",
            "arXiv:1706.03762",
            "2 L d kv_heads/heads",
            "L^2 d",
        ),
        MixerEntry(
            "sliding_window",
            "gatework.layers.sequence.attention:SlidingWindowAttention",
            "softmax attention over the last window_size tokens and the present one",
            "arXiv:2004.05150",
            "2 min(L, window) d kv_heads/heads",
            "L window d",
        ),
        MixerEntry(
            "base_conv",
            "gatework.layers.sequence.gated_conv:BaseConv",
            "a convolution gated by a projection: the minimal gated convolution",
            "arXiv:2312.04927 section 4",
            "(kernel - 1) d, or min(L, max_length) d",
            "L kernel d, or L log L d",
        ),
        MixerEntry(
            "long_conv",
            "gatework.layers.sequence.gated_conv:LongConvolution",
            "one explicit causal filter per channel, as long as the sequence",
            "arXiv:2302.06646",
            "min(L, max_length) d",
            "L log L d",
        ),
        MixerEntry(
            "implicit_long_conv",
            "gatework.layers.sequence.gated_conv:ImplicitLongConvolution",
            "long convolution whose filter is a small network of position",
            "arXiv:2312.04927 appendix",
            "min(L, max_length) d",
            "L log L d",
        ),
        MixerEntry(
            "hyena",
            "gatework.layers.sequence.hyena:Hyena",
            "gated implicit long convolution with an exponential window",
            "arXiv:2302.10866",
            "min(L, max_length) d + 3 taps d",
            "L log L d",
        ),
        MixerEntry(
            "h3",
            "gatework.layers.sequence.h3:H3",
            "shift and diagonal state-space models around multiplicative gates",
            "arXiv:2212.14052",
            "(state + taps) d head_dim",
            "L state d head_dim",
        ),
        MixerEntry(
            "based",
            "gatework.layers.sequence.based:Based",
            "linear attention with a second-order Taylor feature map",
            "arXiv:2402.18668",
            "(d + heads)(1 + f + f(f+1)/2)",
            "L f^2 d",
        ),
        MixerEntry(
            "gated_linear_attention",
            "gatework.layers.sequence.gated_linear_attention:GatedLinearAttention",
            "linear attention whose state decays by a learned gate per key channel",
            "arXiv:2312.06635",
            "heads d_k d_v",
            "L d_k d_v heads",
        ),
        MixerEntry(
            "mamba2",
            "gatework.layers.sequence.mamba2:Mamba2",
            "state-space duality: one input-dependent decay per head",
            "arXiv:2405.21060",
            "expand d state",
            "L expand d state",
        ),
        MixerEntry(
            "big_bird",
            "gatework.layers.sequence.attention_sparse:BigBird",
            "causal attention to a window, a few first tokens and random blocks",
            "arXiv:2007.14062 section 2",
            "2 L d kv_heads/heads",
            "L block d",
        ),
        MixerEntry(
            "nsa",
            "gatework.layers.sequence.native_sparse_attention:NativeSparseAttention",
            "attention to compressed blocks, to the best of them in full, and to a window",
            "arXiv:2502.11089",
            "2 (L + L/block) d kv_heads/heads",
            "L (L/block + top block + window) d",
        ),
        MixerEntry(
            "sigmoid_lookups",
            "gatework.layers.sequence.lookups:SigmoidLookups",
            "attention at the positions that a learned sigmoid selects",
            "arXiv:2312.04927 section 5",
            "2 L d + L",
            "L^2 d in training, then lookups L d",
        ),
        MixerEntry(
            "random_lookups",
            "gatework.layers.sequence.lookups:RandomLookups",
            "attention at positions drawn at random",
            "arXiv:2312.04927 section 5",
            "2 L d",
            "lookups L d",
        ),
        MixerEntry(
            "programmatic_lookups",
            "gatework.layers.sequence.lookups:ProgrammaticLookups",
            "attention at tokens that have occurred before",
            "arXiv:2312.04927 section 5",
            "2 L d + L",
            "lookups L d",
        ),
        MixerEntry(
            "linear_attention",
            "gatework.layers.sequence.linear_attention:LinearAttention",
            "linear attention with a choice of feature maps",
            "arXiv:2006.16236",
            "heads f (d_v + 1)",
            "L f d",
        ),
        MixerEntry(
            "retention",
            "gatework.layers.sequence.retention:Retention",
            "linear attention with one fixed decay per head (RetNet)",
            "arXiv:2307.08621 section 2",
            "heads d_k d_v",
            "L d_k d_v heads",
        ),
        MixerEntry(
            "delta_net",
            "gatework.layers.sequence.delta_net:DeltaNet",
            "a matrix state that replaces what it holds for a key instead of adding to it",
            "arXiv:2406.06484",
            "heads d_k d_v",
            "L d_k d_v heads",
        ),
        MixerEntry(
            "gated_delta_net",
            "gatework.layers.sequence.delta_net:GatedDeltaNet",
            "the delta rule with an input-dependent decay per head",
            "arXiv:2412.06464",
            "heads d_k d_v",
            "L d_k d_v heads",
        ),
        MixerEntry(
            "rwkv4",
            "gatework.layers.sequence.rwkv4:RWKV4",
            "exponentially weighted means of values, one decay per channel",
            "arXiv:2305.13048",
            "3 d",
            "L d",
        ),
        MixerEntry(
            "rwkv5",
            "gatework.layers.sequence.rwkv5:RWKV5",
            "matrix states that decay per channel, with a bonus for the present token",
            "arXiv:2404.05892",
            "d head_dim + d",
            "L d head_dim",
        ),
        MixerEntry(
            "rwkv7",
            "gatework.layers.sequence.rwkv7:RWKV7",
            "a generalised delta rule with decay and in-context learning rate per channel",
            "arXiv:2503.14456",
            "d head_dim + d",
            "L d head_dim",
        ),
        MixerEntry(
            "mamba",
            "gatework.layers.sequence.mamba:Mamba",
            "selective state-space model: input-dependent steps of a diagonal system",
            "arXiv:2312.00752",
            "expand d (state + taps)",
            "L expand d state",
        ),
        MixerEntry(
            "ttt_linear",
            "gatework.layers.sequence.ttt:TTTLinear",
            "a linear model per head, trained on the sequence while reading it",
            "arXiv:2407.04620",
            "heads (dh^2 + dh) + (L mod batch)(2 d + heads)",
            "L (dh + batch) d",
        ),
        MixerEntry(
            "ttt_mlp",
            "gatework.layers.sequence.ttt:TTTMLP",
            "a two-layer network per head, trained on the sequence while reading it",
            "arXiv:2407.04620",
            "heads (8 dh^2 + 5 dh) + (L mod batch)(2 d + heads)",
            "L (8 dh + batch) d",
        ),
    )
}


def list_mixers() -> list[str]:
    """Return the names that :func:`create_mixer` knows so far, sorted."""
    return sorted(_MIXERS)


def mixer_entry(name: str) -> MixerEntry:
    """Return the registry entry of ``name``; if it is not known, ask the installed plugins for it.

    Raises:
        ValueError: If there is no such mixer; the message suggests the nearest names.
    """
    if name not in _MIXERS:
        load_entry_points()
    if name not in _MIXERS:
        raise ValueError(f"mixer {name!r} is not registered{suggestion(name, list_mixers())}")
    return _MIXERS[name]


def create_mixer(name: str, dim: int, **options: Any) -> Mixer:
    """Make the sequence mixer ``name`` for ``dim`` channels.

    Args:
        name: One of :func:`list_mixers`.
        dim: Number of channels of its input and output.
        **options: Options of that mixer's class; see its documentation.

    Raises:
        ValueError: If the name is unknown or an option has an impossible value.
        TypeError: If the mixer has no such option; the message lists those it has.
    """
    factory = mixer_entry(name).load()
    check_names(f"mixer {name!r} has no option", options, mixer_options(name))
    return factory(dim, **options)


def mixer_options(name: str) -> set[str]:
    """Return the names of the options that mixer ``name`` takes."""
    import inspect

    parameters = inspect.signature(mixer_entry(name).load()).parameters
    return {parameter for parameter in parameters if parameter != "dim"}


def register_mixer(
    name: str,
    target: str | Callable[..., Mixer],
    *,
    summary: str = "",
    source: str = "",
    state: str = "",
    cost: str = "",
) -> None:
    """Add a mixer of your own, so that models and studies can name it.

    Args:
        name: The new name; one that exists already is refused.
        target: A :class:`~gatework.layers.sequence.mixer.Mixer` subclass, or ``"module:Class"`` to import it
            later.
        summary: One line for listings.
        source: Where the definition comes from.
        state: A formula of the number of elements that decoding carries.
        cost: A formula of how the time of a whole sequence grows.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _MIXERS:
        raise ValueError(f"mixer {name!r} is already registered as {_MIXERS[name].target!r}")
    _MIXERS[name] = MixerEntry(name, target, summary, source, state, cost)
