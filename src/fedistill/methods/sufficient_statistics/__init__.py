"""Methods that exchange sufficient statistics of private data: each client sends them once."""
