"""Data sets by name, and the batches that evaluation and training take from them."""
