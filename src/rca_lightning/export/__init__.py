"""The trained segmenter as a file that runs without this library."""
