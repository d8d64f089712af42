"""Lists, downloads, reads and writes files."""
