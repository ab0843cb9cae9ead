"""Detection and segmentation: annotations, heads, tasks, scores, predictors."""
