"""Attention of maps in windows, halos and neighbourhoods."""
