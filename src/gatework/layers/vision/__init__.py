"""Modules on maps of images: neighbourhoods and halos."""
