"""Row 26, and row 30 as far as it speaks of the pull: images that cannot be had.

Commands that do not exist or cannot be executed are in tests/integration/test_runs.py; a program
for another processor, and each refusal by itself, in tests/executors/test_docker.py.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from container_manager import lifecycle
from container_manager.states import StopKind
from tests.support import docker_engine
from tests.support.neighbours import PATIENCE, beside_innocents, told
from tests.support.running import DOCKER_MARKS, attempt_of, queue_job
from tests.support.spine import path_of

pytestmark = [*DOCKER_MARKS, pytest.mark.processes, pytest.mark.django_db(transaction=True)]

AT_ONCE = {"strategy": "fixed", "base_seconds": 0, "jitter": 0}
UNKNOWN = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
DENIED = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}


@contextmanager
def hanging_registry() -> Iterator[tuple[str, threading.Event]]:
    """One that takes the question and never answers; the event tells of the first question."""
    asked, over = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        over.wait(PATIENCE)

    with docker_engine.registry(hang) as address:
        try:
            yield address, asked
        finally:
            over.set()


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_each_image_that_cannot_be_had_is_told_as_what_it_is(workers):
    with ExitStack() as stack:
        answers = {
            "missing": partial(docker_engine.reply, status=404, body=UNKNOWN),
            "denied": partial(docker_engine.reply, status=401, body=DENIED),
            "foreign": docker_engine.offer_another_processor,
        }
        registries = {
            name: stack.enter_context(docker_engine.registry(answer))
            for name, answer in answers.items()
        }
        hanging, asked = stack.enter_context(hanging_registry())
        stack.enter_context(beside_innocents(workers, "docker", concurrency=9, MAX_INFRA_RETRIES=1))

        def wanting(address: str, **fields: object) -> object:
            image = f"{address}/some/image"
            return queue_job("docker", "true", image=image, retry_policy=AT_ONCE, **fields)

        permanent = [wanting(address, max_retries=3) for address in registries.values()]
        down = wanting(nowhere(), max_retries=3)
        slow = wanting(hanging, start_timeout_seconds=1)
        unwanted = wanting(hanging, max_retries=3)

        for job in permanent:
            assert told(job) == ("failed", "image_not_found", None)
            job.refresh_from_db()
            assert (job.attempt, job.retry_count, attempt_of(job).blame) == (1, 0, "user")
        assert told(down) == ("failed", "poison", None)
        down.refresh_from_db()
        assert (down.attempt, down.retry_count) == (2, 0)
        assert attempt_of(down, 1).reason == "launch_error"
        assert told(slow) == ("failed", "start_timeout", None)
        assert asked.is_set()
        lifecycle.stop([unwanted.pk], StopKind.KILL)
        assert told(unwanted) == ("killed", "killed", None)
        assert path_of(unwanted) == ["queued", "running", "killed"]
