"""Frames, what both sides remember, and the two ends of a link."""
