"""From images to trained weights: a recipe says how, the loop does it, checkpoints resume it."""
