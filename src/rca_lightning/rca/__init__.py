"""Regional Semantic Contrast and Aggregation (arXiv 2203.09653), part by part."""
