"""Published systems, one file each, grouped by what they answer."""
