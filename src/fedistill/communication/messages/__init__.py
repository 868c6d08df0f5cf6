"""The messages that methods send, one file for each kind of content."""
