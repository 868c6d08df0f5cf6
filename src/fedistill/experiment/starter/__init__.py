"""`fedistill init`: looks at data and writes an experiment that learns from them, or a shipped example."""
