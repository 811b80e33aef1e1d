"""What a trained model is asked afterwards: any causal language model of Transformers, scored on AR slices.

- :mod:`gatework.evaluation.slice_options`: what can be chosen, light to import.
- :mod:`gatework.evaluation.slice_scores`: the scores of one model, or of two on the same tokens.
- :mod:`gatework.evaluation.slice_report`: those scores as numbers and as JSON.
- :mod:`gatework.evaluation.causal_model`: models from a folder or the hub, and their losses token by token.
"""
