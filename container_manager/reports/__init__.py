"""Read-only answers that every door shows: why a job waits, what the machinery is doing, logs.

Rule of this package: nothing here writes, and nothing here knows who asks or how it is shown.
"""
