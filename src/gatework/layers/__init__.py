"""Modules that hold parameters and call the operators: the sequence mixers and what they share."""
