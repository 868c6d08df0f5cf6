"""Integers in as few bytes as their models foresee."""
