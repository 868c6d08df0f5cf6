"""Codecs: how the tensors of a message become bytes, and back."""
