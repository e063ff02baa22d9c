"""Do the tests bite? Plants bugs in a copy of the tree, one at a time, and runs the tests.

    python -m tests.bite            all, with a table; exit code 1 when more than one goes unnoticed
    python -m tests.bite fence      those whose name has this word

A bug counts as caught when a test fails with it that passes without it.
"""
