"""What an honest-but-curious server that keeps all frames of a run learns of its clients' private data."""
