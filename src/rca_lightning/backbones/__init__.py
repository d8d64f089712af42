"""Feature extractors by name."""
