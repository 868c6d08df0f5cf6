"""The experiment file: its settings, how it is read, and the messages about what is wrong with it."""
