"""Do the tests bite? Plants bugs in a copy of the tree, one at a time, and runs the tests.

    python -m tests.bite            all, with a table; exit code 1 when more than one goes unnoticed
    python -m tests.bite fence      those whose name has this word

Before anything is planted all these tests must pass on the copy; then each bug must make one fail.
"""
