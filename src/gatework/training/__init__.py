"""How a model is trained: the trainer, exact resume, averages of the weights, guards and logs.

- :mod:`gatework.training.options`: what can be chosen, light to import.
- :mod:`gatework.training.recipe`: all that a training follows from.
- :mod:`gatework.training.trainer`: a Lightning trainer from the options.
- :mod:`gatework.training.resume`: checkpoints from which training goes on bit by bit the same.
- :mod:`gatework.training.fit`: one training from beginning to end, and its directory.
- :mod:`gatework.training.evaluate`: scores and predictions of what was trained.
"""
