"""A world in one thread: whole workers, their engine, people and faults, chosen by a seed."""
