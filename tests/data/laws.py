"""Chi-square tests: how probable are counts so far apart, or so far from a law?"""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2_contingency, chisquare


def same_law(first: np.ndarray, second: np.ndarray, rare: int = 20) -> float:
    """The p-value of two histograms having one law; cells seen less than ``rare`` times are pooled."""
    table = np.array([first, second])
    often = table.sum(0) >= rare
    pooled = table[:, ~often].sum(1, keepdims=True)
    table = np.concatenate([table[:, often], pooled], 1) if pooled.sum() >= rare else table[:, often]
    return float(chi2_contingency(table).pvalue)


def follows(counts: np.ndarray, p: np.ndarray) -> float:
    """The p-value of ``counts`` being drawn from ``p``."""
    return float(chisquare(counts.ravel(), p.ravel() * counts.sum()).pvalue)
