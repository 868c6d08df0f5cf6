"""Methods that exchange something for each class."""
