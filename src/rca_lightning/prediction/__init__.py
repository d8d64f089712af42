"""Prediction in Python: loads a checkpoint, and gives the mask of a photograph in any form."""
