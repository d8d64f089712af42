"""From activation maps to pseudo labels."""
