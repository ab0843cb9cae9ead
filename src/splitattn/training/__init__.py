"""Training: recipes hold the settings, the loop trains, checkpoints let it resume."""
