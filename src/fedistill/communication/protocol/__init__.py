"""Frames, the state that both sides share, and the two ends of a link."""
