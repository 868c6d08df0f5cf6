"""The messages that methods send, by what is in them."""
