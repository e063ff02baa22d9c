"""Engines that do as the test says, so that no real one is asked."""

from __future__ import annotations

from typing import Any

import pytest

from container_manager.consistency import engine_side
from tests.support.fake_executor import World
from tests.support.loops import configured, world

__all__ = ["configured", "world"]


@pytest.fixture(autouse=True)
def _no_real_engine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_side, "LOOK_AGAIN_SECONDS", 0.0)


@pytest.fixture
def engine(world: World) -> Any:
    """The one engine that is configured, as the test moves it."""
    return world
