"""k-means and Sinkhorn clustering of many classes at once."""
