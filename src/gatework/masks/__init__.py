"""Who may attend to whom: small frozen values, combined with ``&`` and ``|``."""

from gatework.masks.algebra import And, Mask, Or, QueryOffset
from gatework.masks.sequence import Causal, Full, SlidingWindow

__all__ = ["And", "Causal", "Full", "Mask", "Or", "QueryOffset", "SlidingWindow"]
