"""Scores of class maps and label images."""
