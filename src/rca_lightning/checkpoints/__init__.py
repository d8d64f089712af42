"""Checkpoints: written whole, read safely, matched to the run that loads them."""
