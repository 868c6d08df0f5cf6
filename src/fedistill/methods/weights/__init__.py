"""Methods whose messages are weights."""
