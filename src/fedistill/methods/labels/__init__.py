"""Methods that exchange labels of public samples."""
