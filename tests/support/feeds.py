"""A feed of a test's own, of which no thread and no connection is left when it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from container_manager.events import feed as feeds
from container_manager.outbox import FeedSource
from tests.support.workers import wait_until

THREADS = {"event feed", "event listener", "listener"}


@contextmanager
def own_feed() -> Iterator[FeedSource]:
    """`subscribe` and `the_feed` lead to it."""
    before, known = feeds._feed, set(threading.enumerate())
    outbox = FeedSource()
    feeds.use(outbox)
    try:
        yield outbox
    finally:
        outbox.close()
        feeds._feed = before
        wait_until(lambda: not left_of(known), "the threads of the feed to end")


def left_of(known: set[threading.Thread]) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name in THREADS and each not in known]


def end_listening() -> None:
    """Close this process' own feed for good, with its connection."""
    if feeds._feed is not None:
        feeds._feed._source.close()  # type: ignore[attr-defined]
    listeners = [each for each in threading.enumerate() if each.name == "listener"]
    for each in listeners:
        each.join(10)
