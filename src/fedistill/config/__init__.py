"""The experiment file: its settings, how it is read, and what is said of a wrong one."""
