"""Differential privacy: what adds noise, and what it is worth."""
