"""Controls: nothing is exchanged."""
