"""The dataset-wide memory of regions, its clustering and the measures of its prototypes."""
