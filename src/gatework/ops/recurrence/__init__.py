"""Linear recurrences and scans, each with a plain definition beside its fast paths."""
