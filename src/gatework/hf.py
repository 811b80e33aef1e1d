"""Register our language model with Transformers: importing this module does it, nothing else does.

Afterwards ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` know the model type ``"gatework"``.
:func:`without_bars` keeps Transformers quiet while it reads or writes a model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM, GateworkModel

__all__ = ["GateworkConfig", "GateworkForCausalLM", "GateworkModel", "without_bars"]

AutoConfig.register(GateworkConfig.model_type, GateworkConfig)
AutoModel.register(GateworkConfig, GateworkModel)
AutoModelForCausalLM.register(GateworkConfig, GateworkForCausalLM)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep Transformers from drawing bars while it reads or writes a model."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
