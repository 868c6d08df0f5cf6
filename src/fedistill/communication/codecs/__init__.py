"""How the numbers of a message become bytes, and back."""
