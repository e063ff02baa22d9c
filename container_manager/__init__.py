"""Run container jobs from Django; the database itself refuses every illegal move."""

__version__ = "0.1.0"
