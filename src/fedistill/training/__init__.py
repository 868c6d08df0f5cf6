"""Local training: the loop, losses, optimizers, and models as plain data."""
