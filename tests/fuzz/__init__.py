"""Schemathesis against the running server, with every check that it has.

python -m tests.fuzz --cases 2000 --seed 1

DATABASE_URL says where: a test database is made there.
"""
