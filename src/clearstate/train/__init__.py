"""Training: the recipe, the loop and its checkpoints."""
