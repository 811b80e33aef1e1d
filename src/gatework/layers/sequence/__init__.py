"""The causal sequence mixers, all behind one interface, :class:`gatework.layers.sequence.mixer.Mixer`."""
