"""Telling others what happens: in this process, over Redis, to a webhook, to a log."""

from container_manager.events.base import TransitionEvent
from container_manager.events.feed import Subscription, subscribe

__all__ = ["Subscription", "TransitionEvent", "subscribe"]
