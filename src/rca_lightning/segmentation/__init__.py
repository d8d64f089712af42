"""The segmentation network of the second stage."""
