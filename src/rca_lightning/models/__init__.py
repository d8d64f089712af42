"""Networks and the pure parts of RCA that work on features and maps."""
