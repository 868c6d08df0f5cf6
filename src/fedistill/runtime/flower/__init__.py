"""Kept only for Flower apps of earlier versions."""
