"""Callbacks for the Lightning Trainer."""
