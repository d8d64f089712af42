"""Regional Semantic Contrast and Aggregation."""
