"""Kept for Flower apps of earlier versions alone."""
