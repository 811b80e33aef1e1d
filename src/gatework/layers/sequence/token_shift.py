"""Token shift: what the token before was, as RWKV layers mix it into the present one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def token_shift(
    x: Float[Tensor, "batch length channels"], last: Float[Tensor, "batch channels"]
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels"]]:
    """Return ``x_{t-1}`` for every token ``x_t``, and the token that a next stretch starts from.

    Source: arXiv:2305.13048, section 3.1.1.

    Args:
        x: A stretch of tokens, which may be empty.
        last: The token before them; zeros before the first token of a sequence.

    Returns:
        The tokens one place later in the dtype of ``x``, and the last of them in the dtype of ``last``.
    """
    stretch = torch.cat([last.to(x.dtype).unsqueeze(1), x], 1)
    return stretch[:, :-1], stretch[:, -1].to(last.dtype)
