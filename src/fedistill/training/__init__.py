"""Local training: the loop, losses, optimizers, and model states as plain data."""
