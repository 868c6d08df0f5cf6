"""Tasks: private samples divided among clients, a public set without labels, and a test set.

Worker processes only need `fedistill.data.task`. Loading and dividing data (`fedistill.data.build`) needs
large libraries, so that module is imported only where a task is built.
"""
