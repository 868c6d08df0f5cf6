"""Methods that exchange one vector per class."""
