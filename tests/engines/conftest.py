"""Engines and the executors behind them, as workers see them."""

from tests.support.loops import configured, world

__all__ = ["configured", "world"]
