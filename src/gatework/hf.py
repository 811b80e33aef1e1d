"""Register our language model with Transformers: importing this module does it, nothing else does.

Afterwards ``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` know the model type ``"gatework"``.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM, GateworkModel

__all__ = ["GateworkConfig", "GateworkForCausalLM", "GateworkModel"]

AutoConfig.register(GateworkConfig.model_type, GateworkConfig)
AutoModel.register(GateworkConfig, GateworkModel)
AutoModelForCausalLM.register(GateworkConfig, GateworkForCausalLM)
