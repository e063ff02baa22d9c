"""One thread of a process that looks for all who follow the output of jobs there.

It asks one question for all their jobs, and reads what is new once, however many follow. Nothing is
asked while nobody follows.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from django.db import InterfaceError, OperationalError

from container_manager import sse
from container_manager.models.connections import give_back_connection
from container_manager.models.followed import Standing, chunks_behind, standings
from container_manager.reports.log_following import AT_HAND, Chunk, Seen, Window
from container_manager.sse import Bell

logger = logging.getLogger("container_manager")

SHORTEST_PAUSE, LONGEST_PAUSE, GROWTH = 0.025, 0.1, 1.01
"""Seconds between two looks: so much longer after each one that found nothing."""

AWAY_SECONDS = 1.0
"""Between two looks while the database does not answer."""

MOST_BYTES, MOST_CHUNKS = 4 * 1024 * 1024, 4096
"""Of one look; who follows a job that prints more reads that for himself."""


@dataclass(eq=False)
class Watched:
    """A job that is followed, and who waits for news of it."""

    job_id: UUID
    seen: Seen | None = None
    """By the latest look; None before the first one."""
    bells: set[Bell] = field(default_factory=set)


class Lookout:
    """Whoever watches a job has his bell rung when anything of it is new."""

    def __init__(self) -> None:
        self._jobs: dict[UUID, Watched] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._somebody_came = False
        self._pause = SHORTEST_PAUSE
        self._rests = True

    def watch(self, job_id: UUID, bell: Bell) -> Watched:
        """From now on; how the job stands is also new to who comes."""
        with self._changed:
            watched = self._jobs.setdefault(job_id, Watched(job_id))
            watched.bells.add(bell)
            self._somebody_came = True
            self._changed.notify()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
                self._thread.start()
        return watched

    def leave(self, watched: Watched, bell: Bell) -> None:
        with self._changed:
            watched.bells.discard(bell)
            if not watched.bells and self._jobs.get(watched.job_id) is watched:
                del self._jobs[watched.job_id]

    # The thread

    def _run(self) -> None:
        while True:
            watched = self._wait()
            try:
                news = self._look(watched)
            except (OperationalError, InterfaceError) as error:
                logger.warning("Nobody can follow jobs: database: %s", str(error).strip())
                self._recover()
            except Exception:
                logger.exception("Looking for those who follow jobs went wrong")
                self._recover()
            else:
                self._pause = SHORTEST_PAUSE if news else min(self._pause * GROWTH, LONGEST_PAUSE)

    def _wait(self) -> dict[UUID, Watched]:
        with self._changed:
            self._changed.wait_for(lambda: self._somebody_came, self._pause)
            if not self._jobs:
                give_back_connection()
                self._rests = True
                self._changed.wait_for(lambda: self._jobs)
            self._rests = self._somebody_came = False
            return dict(self._jobs)

    def _recover(self) -> None:
        give_back_connection()
        self._pause = AWAY_SECONDS

    def _look(self, watched: Mapping[UUID, Watched]) -> bool:
        """Was anything new?"""
        found = standings(watched)
        news = {
            job_id: found.get(job_id)
            for job_id, each in watched.items()
            if each.seen is None or each.seen.standing != found.get(job_id)
        }
        windows = _windows(watched, news)
        for job_id, standing in news.items():
            watched[job_id].seen = Seen(standing, windows.get(job_id))
        with self._changed:
            bells = [bell for job_id in news for bell in watched[job_id].bells]
        sse.ring(bells)
        return bool(news)


def _windows(
    watched: Mapping[UUID, Watched], news: Mapping[UUID, Standing | None]
) -> dict[UUID, Window]:
    """The newest output of each job as it stands now."""
    made: dict[UUID, Window] = {}
    behind: dict[UUID, Window] = {}
    room = MOST_BYTES
    for job_id, standing in news.items():
        if standing is None:
            continue
        made[job_id] = Window.at_the_end(standing)
        window = _of_this_attempt(watched[job_id].seen, standing)
        if window and 0 <= (new := window.lacks(standing)) <= min(AT_HAND, room):
            behind[job_id] = window
            room -= new
    for job_id, chunks in _new_chunks(behind).items():
        if standing := news[job_id]:
            made[job_id] = behind[job_id].up_to(standing, chunks)
    return made


def _of_this_attempt(seen: Seen | None, standing: Standing) -> Window | None:
    window = seen.window if seen else None
    return window if window and window.attempt == standing.attempt else None


def _new_chunks(behind: Mapping[UUID, Window]) -> dict[UUID, list[Chunk]]:
    """What is behind these windows; nothing at all when it is too much."""
    if not behind:
        return {}
    places = [(job_id, window.attempt, window.end) for job_id, window in behind.items()]
    rows = chunks_behind(places, MOST_CHUNKS)
    if len(rows) == MOST_CHUNKS:
        return {}
    found: dict[UUID, list[Chunk]] = defaultdict(list, {job_id: [] for job_id in behind})
    for row in rows:
        found[row.job_id].append(Chunk(row.stream, row.offset, bytes(row.data)))
    return found


lookout = Lookout()
"""The one of this process."""
