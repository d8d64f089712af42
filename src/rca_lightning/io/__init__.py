"""Files: found, read, written."""
