"""Entropy coding: integers in about as few bytes as a model of them predicts."""
