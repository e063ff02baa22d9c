"""Workers inside the test's process."""

from tests.support.loops import configured, world

__all__ = ["configured", "world"]
