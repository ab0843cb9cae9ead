"""Opens data sets and makes batches for evaluation and training."""
