"""The crash sweep: real workers are killed at every point, and the next one must mend it all.

python -m tests.crash --help
"""
