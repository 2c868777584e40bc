"""The mathematics of each metric: sums over batches that become one figure."""
