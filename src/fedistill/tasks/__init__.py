"""Tasks: private samples dealt out to clients, a public set without labels, and a test set.

Worker processes need `fedistill.tasks.task` alone; what loads and divides data (`fedistill.tasks.build`)
brings large libraries along and is imported where a task is built.
"""
