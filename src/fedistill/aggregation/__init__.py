"""Combining the replies of many clients into one value."""
