"""Tasks: private samples dealt out to clients, a public set without labels, and a test set.

Worker processes need `fedistill.data.task` alone; what loads and divides data (`fedistill.data.build`)
brings large libraries along and is imported where a task is built.
"""
