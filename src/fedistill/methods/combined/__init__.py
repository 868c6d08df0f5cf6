"""Methods that exchange labels and weights."""
