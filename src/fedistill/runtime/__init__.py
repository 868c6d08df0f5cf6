"""Where clients work: in this process, in worker processes."""
