"""The jobs of `manage.py demo`: what each shows, how it must end, and where they can run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from container_manager import conf
from container_manager.executors.base import EngineUnavailable
from container_manager.executors.docker_http import Address, EngineHttp, address_from_environment
from container_manager.models import ContainerJob
from container_manager.states import JobStatus, Reason, StopKind

QUEUE = "demo"
IMAGES = ("busybox", "alpine", "debian", "ubuntu", "python", "bash")
"""Images that have a shell, smallest first."""


@dataclass(frozen=True)
class Scene:
    """One job of the demo."""

    name: str
    script: str
    ends: JobStatus
    reason: Reason | None = None
    attempts: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    stop: StopKind | None = None
    stop_in: JobStatus = JobStatus.RUNNING

    def wanted(self, place: Place, run: str) -> dict[str, Any]:
        """The fields of its job."""
        return {
            "name": self.name,
            "command": ["sh", "-c", self.script],
            "queue": QUEUE,
            "labels": {"demo": run},
            "stop_grace_seconds": 1,
            "max_retries": 0,
            **place.fields,
            **self.options,
        }

    def went_well(self, job: ContainerJob) -> bool:
        """Did it end as it should?"""
        return (job.status, job.reason, job.attempt) == (
            self.ends,
            self.reason or "",
            self.attempts,
        )


_SOON = {"strategy": "fixed", "base_seconds": 1, "jitter": 0}
_TWICE = 'if [ "$CM_ATTEMPT" = 1 ]; then echo out of luck; exit 1; fi; echo second try worked'
_COUNT = "for i in 1 2 3 4 5; do echo $i of 5; sleep 0.4; done; echo done"
_STUBBORN = "trap '' TERM; echo I ignore SIGTERM; while :; do sleep 1; done"

SCENES = (
    Scene("hello", "echo hello, world", JobStatus.COMPLETED, options={"priority": 60}),
    Scene("count", _COUNT, JobStatus.COMPLETED),
    Scene(
        "fails",
        "echo it went wrong; exit 3",
        JobStatus.FAILED,
        Reason.EXIT_CODE,
    ),
    Scene(
        "second-try",
        _TWICE,
        JobStatus.COMPLETED,
        attempts=2,
        options={"max_retries": 1, "retry_policy": _SOON},
    ),
    Scene("stubborn", _STUBBORN, JobStatus.KILLED, Reason.KILLED, stop=StopKind.KILL),
    Scene(
        "polite",
        "trap 'echo bye; exit 0' TERM; echo at work; while :; do sleep 0.1; done",
        JobStatus.CANCELLED,
        Reason.CANCELLED,
        stop=StopKind.CANCEL,
    ),
    Scene(
        "withdrawn",
        "echo never printed",
        JobStatus.CANCELLED,
        Reason.CANCELLED,
        attempts=0,
        options={"priority": 0},
        stop=StopKind.CANCEL,
        stop_in=JobStatus.QUEUED,
    ),
    Scene(
        "too-long",
        "echo a long sleep; sleep 60",
        JobStatus.FAILED,
        Reason.TIMEOUT,
        options={"timeout_seconds": 2},
    ),
    *(
        Scene(f"batch-{number}", f"echo {number} x {number} = $(({number} * {number}))", ends)
        for number, ends in ((7, JobStatus.COMPLETED), (8, JobStatus.COMPLETED))
    ),
)


@dataclass(frozen=True)
class Place:
    """Where the jobs of this run can run."""

    executor: str
    image: str
    sentence: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"executor": self.executor, "image": self.image, "pull_policy": "never"}


def find_place() -> Place | None:
    """In containers where an engine answers and has an image, else as local processes."""
    executors = conf.executors()
    for alias, entry in executors.items():
        if entry["class"].endswith(".DockerExecutor"):
            image = _local_image(entry.get("options") or {})
            if image:
                sentence = f"in containers of the image {image} (executor {alias})"
                return Place(alias, image, sentence)
    for alias, entry in executors.items():
        if entry["class"].endswith(".ProcessExecutor"):
            sentence = "as local processes: there is no Docker engine with an image"
            return Place(alias, "", sentence)
    return None


def _local_image(options: dict[str, Any]) -> str:
    """An image with a shell that the engine has already; empty when there is none."""
    try:
        certificates = str(options.get("tls_certificates") or "")
        url = options.get("base_url") or address_from_environment()
        engine = EngineHttp(Address.parse(str(url), certificates), timeout=3.0, pool_size=1)
        reply = engine.call("GET", "/images/json")
        images = json.loads(reply.body) if reply.status == 200 else []
    except (EngineUnavailable, OSError, ValueError):
        return ""
    return _smallest(tag for image in images for tag in image.get("RepoTags") or ())


def _smallest(tags: Iterable[str]) -> str:
    """
    >>> _smallest(["python:3.12", "mirror.local:5000/library/alpine:3", "<none>:<none>"])
    'mirror.local:5000/library/alpine:3'
    """
    known: dict[str, str] = {}
    for tag in sorted(tags):
        repository = tag.rpartition("/")[2].partition(":")[0]
        known.setdefault(repository, tag)
    return next((known[name] for name in IMAGES if name in known), "")
