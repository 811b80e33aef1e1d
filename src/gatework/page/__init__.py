"""Pages that report measurements: one self-contained file each, with one frame and one notation."""
