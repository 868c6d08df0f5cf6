"""Secure sums: the server learns the sum of what clients send, and nothing else of any one of them."""
