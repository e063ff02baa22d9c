"""Rows 4 and 41: what ended attempts left on the engines goes, what is not ours stays.

Each test looks at the real engine, as `docker ps` or the process table would.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from django.utils import timezone

from container_manager import lifecycle
from container_manager.consistency import engine_side
from container_manager.engines import Engine, Engines, Listing
from container_manager.executors.base import LABEL_INSTANCE, JobSpec
from container_manager.executors.docker import DockerExecutor
from container_manager.executors.process import FORGOTTEN_SECONDS
from container_manager.models import ContainerJob, JobAttempt, Worker
from container_manager.models.attempt import attempt_name
from container_manager.states import StopKind
from container_manager.worker.reaper import Reaper
from container_manager.worker.sweeper import Sweeper
from tests.commands.shell import run
from tests.consistency.planting import a_living_worker, lived, on_engine, told
from tests.support import docker_engine
from tests.support.docker_engine import FaultyLine
from tests.support.fake_executor import FakeExecutor, World
from tests.support.loops import working
from tests.support.running import KINDS, lives, queue_job
from tests.support.spine import contradictions
from tests.support.workers import settled, wait_for, wait_until

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

DOCKER = pytest.mark.parametrize("kind", KINDS[1:], indirect=True)
PROCESS = pytest.mark.parametrize("kind", KINDS[:1], indirect=True)
HOUR = timedelta(hours=1)
SLEEPS = ("/bin/sh", "-c", "sleep 600")


class Ground:
    """One engine, and a reaper of this installation that looks at it."""

    def __init__(self, kind: str, directory: Path, configured: Callable[..., None]) -> None:
        self.kind = kind
        self.instance = f"test-{uuid4()}"
        self.directory = directory
        self.options = {"state_dir": str(directory)} if kind == "process" else {}
        name = {"process": "process.ProcessExecutor", "docker": "docker.DockerExecutor"}[kind]
        entry = {"class": f"container_manager.executors.{name}", "options": self.options}
        configured(EXECUTORS={kind: entry}, INSTANCE_ID=self.instance, PROCESS_EXECUTOR=True)
        self.engines = Engines()
        self.engine = self.engines[kind]
        self.engine.probe()
        assert self.engine.available
        self.sweeper = Sweeper()
        self.reaper = Reaper(self.engines, self.instance, self.sweeper)
        self.strangers = {self.instance}

    def reap(self) -> None:
        """All that the duties of one round do, and what follows from them."""
        self.reaper.look()
        self._wait()
        self.reaper.reap()
        self._wait()
        self.sweeper.record()

    def _wait(self) -> None:
        wait_until(lambda: self.sweeper.is_idle, "the sweeper")

    def start(self, name: str, *, instance: str = "", command: tuple[str, ...] = SLEEPS) -> str:
        """Run something of this name, of this installation or another."""
        spec = self.spec(name, instance or self.instance, command)
        self.strangers.add(spec.instance)
        executor = self.engine.executor
        created = executor.create_or_adopt(spec, timeout=60, cancelled=Event())
        executor.start(created)
        return name

    def spec(self, name: str, instance: str, command: tuple[str, ...] = SLEEPS) -> JobSpec:
        image = docker_engine.IMAGE if self.kind == "docker" else ""
        kind = "container" if self.kind == "docker" else "process"
        return JobSpec(
            name, instance, "job", 1, command, image=image, isolation=kind, pull_policy="never"
        )

    def runs(self, name: str, instance: str = "") -> bool:
        found = self.engine.executor.find(name, instance or self.instance)
        return found is not None and found.running

    def names(self) -> set[str]:
        return set(self.engine.executor.list_names(self.instance))

    def attempt_of(self, job: ContainerJob, **fields: Any) -> str:
        """The records say that its attempt is on this engine; returns its name."""
        job.attempts.update(executor=self.kind, engine_id=self.engine.id, **fields)
        return attempt_name(job.pk, 1)

    def clean_up(self) -> None:
        for instance in self.strangers:
            for name in self.engine.executor.list_names(instance):
                self.engine.remove(name, instance)
        self.engines.stop()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _looks_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_side, "LOOK_AGAIN_SECONDS", 0.0)


@pytest.fixture
def ground(kind: str, tmp_path: Path, configured: Any, transactional_db: None) -> Iterator[Ground]:
    ground = Ground(kind, tmp_path / "executions", configured)
    yield ground
    ground.clean_up()


def over(ground: Ground, *, ago: timedelta = HOUR, **fields: Any) -> str:
    """An attempt that ended so long ago."""
    job = lived("running", "completed")
    return ground.attempt_of(job, updated_at=timezone.now() - ago, **fields)


def is_noted(name: str) -> bool:
    return {each.name: each.cleaned_up for each in JobAttempt.objects.all()}[name]


# Ours ---------------------------------------------------------------------------------------------


def test_what_is_left_of_an_ended_attempt_is_ended_and_removed(ground: Ground) -> None:
    running, ended = over(ground), over(ground)
    said_to_be_gone = over(ground, cleaned_up=True)
    for name in (running, said_to_be_gone):
        ground.start(name)
    ground.start(ended, command=("/bin/true",))
    ground.reap()
    assert ground.names() == set()
    assert all(map(is_noted, (running, ended, said_to_be_gone)))
    assert contradictions() == []


def test_what_is_held_and_what_ended_just_now_is_left_alone(ground: Ground) -> None:
    held = ground.attempt_of(lived("running"), updated_at=timezone.now() - HOUR)
    fresh = over(ground, ago=timedelta(seconds=5))
    for name in (held, fresh):
        ground.start(name)
    ground.reap()
    assert ground.runs(held)
    assert ground.runs(fresh)
    assert not is_noted(fresh)


def test_a_barred_name_is_kept_for_an_hour(ground: Ground) -> None:
    barred = over(ground, reason="worker_lost", ago=timedelta(minutes=59))
    assert ground.engine.executor.bar(ground.spec(barred, ground.instance))
    ground.reap()
    assert ground.names() == {barred}
    assert not is_noted(barred)
    JobAttempt.objects.update(updated_at=timezone.now() - timedelta(minutes=62))
    ground.reap()
    assert ground.names() == set()
    assert is_noted(barred)


def test_of_what_left_nothing_that_is_noted(ground: Ground) -> None:
    name = over(ground)
    elsewhere = over(ground)
    JobAttempt.objects.filter(job_id=elsewhere[3:39]).update(engine_id="another")
    ground.reap()
    assert is_noted(name)
    assert not is_noted(elsewhere)


@PROCESS
def test_however_much_was_left_on_an_engine_that_is_gone_it_is_asked_for_once(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will ever remove that; each worker passes it by at every look."""
    for _ in range(3):
        over(ground)
    JobAttempt.objects.update(engine_id="gone with its machine")
    asked: list[str] = []
    monkeypatch.setattr(ground.engine, "proves_gone", asked.append)
    ground.reap()
    assert asked == ["gone with its machine"]
    assert not JobAttempt.objects.filter(cleaned_up=True).exists()


def test_what_no_attempt_knows_stays_until_a_person_says_so(ground: Ground) -> None:
    """A copy of the database may bear the same label: the worker must not judge it."""
    orphan = ground.start(f"cm-{uuid4()}-1")
    ground.reap()
    assert ground.runs(orphan)
    (found,) = told()
    assert (found["code"], found["execution"]) == ("execution_unknown", orphan)
    assert run("check_jobs", "--repair").code == 1
    assert ground.runs(orphan)
    assert run("check_jobs", "--repair", "--remove-unknown").lines[0] == (
        f"repaired execution_unknown: {orphan} was removed"
    )
    assert ground.names() == set()
    assert told() == []


# Strangers ----------------------------------------------------------------------------------------


def test_the_same_name_of_another_installation_is_never_touched(ground: Ground) -> None:
    """A copy of the database with an instance of its own knows the very same attempts."""
    name = over(ground)
    ground.start(name, instance="production")
    ground.strangers.add("production")
    ground.reap()
    assert ground.runs(name, "production")
    assert told() == []
    assert run("check_jobs", "--repair").code == 0
    ground.engine.remove(name, ground.instance)
    assert ground.runs(name, "production")


@DOCKER
@pytest.mark.parametrize("labelled", [True, False], ids=["other label", "no label"])
def test_foreign_containers_with_similar_names_are_never_touched(
    ground: Ground, labelled: bool
) -> None:
    """Row 41: names like ours, and one that is exactly that of an attempt that is over."""
    labels = {LABEL_INSTANCE: f"{ground.instance}-2"} if labelled else {"app": "cm"}
    names = [over(ground), f"cm-{uuid4()}-1", f"cm-{uuid4()}", f"{over(ground)}0"]
    with docker_engine.engine() as http:
        body = {
            "Image": docker_engine.IMAGE,
            "Cmd": list(SLEEPS),
            "Labels": labels,
            "HostConfig": {"NetworkMode": "none"},
        }
        try:
            for name in names:
                assert http.call("POST", "/containers/create", {"name": name}, body).ok
                assert http.call("POST", f"/containers/{name}/start").ok
            ground.reap()
            assert run("check_jobs", "--repair").code == 0
            ground.engine.remove(names[0], ground.instance)
            running = [
                http.call("GET", f"/containers/{name}/json").json()["State"]["Running"]
                for name in names
            ]
            assert running == [True] * len(names)
        finally:
            for name in names:
                http.call("DELETE", f"/containers/{name}", {"force": "1"})


@PROCESS
def test_other_things_in_the_state_directory_are_never_touched(ground: Ground) -> None:
    stranger = ground.directory / "notes"
    stranger.mkdir(parents=True)
    (stranger / "precious").write_text("keep")
    ground.reap()
    assert run("check_jobs", "--repair").code == 0
    assert (stranger / "precious").read_text() == "keep"


# When something fails -----------------------------------------------------------------------------


@DOCKER
def test_a_removal_that_failed_is_tried_again(ground: Ground, tmp_path: Path) -> None:
    """Row 41: `rm -f` fails once."""
    line = FaultyLine(tmp_path)
    executor = DockerExecutor(base_url=line.url)
    ground.engine.executor.close()  # type: ignore[attr-defined]
    ground.engine.executor = executor
    name = ground.start(over(ground))
    try:
        line.fail("DELETE /")
        ground.reap()
        assert ground.names() == {name}
        assert not is_noted(name)
        ground.reap()
        assert ground.names() == set()
        assert is_noted(name)
    finally:
        executor.close()
        line.close()
        ground.engine.executor = DockerExecutor()


def test_an_engine_that_was_replaced_while_it_was_asked_says_nothing(ground: Ground) -> None:
    asked = iter(["before", "after"])

    class Replaced(FakeExecutor):
        world = World()

        def engine_id(self) -> str:
            return next(asked)

    assert Engine("fake", Replaced()).listing("x") is None


def test_a_list_from_before_we_stood_still_is_not_used(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = over(ground)
    ground.reaper.look()
    wait_until(lambda: ground.sweeper.is_idle, "the list")
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    ground.reaper.reap()
    assert not is_noted(name)


@PROCESS
def test_directories_that_a_crash_left_half_made_or_half_removed_go(ground: Ground) -> None:
    kept = ground.start(ground.attempt_of(lived("running")))
    half_made, half_removed = (
        ground.directory / name for name in (".new-0123456789abcdef", f"cm-{uuid4()}-1")
    )
    for directory in (half_made, half_removed):
        directory.mkdir()
    (half_made / "journal").write_text("{")
    ground.reap()
    assert half_made.exists()
    assert half_removed.exists()
    before = time.time() - FORGOTTEN_SECONDS - 1
    for directory in (half_made, half_removed):
        os.utime(directory, (before, before))
    os.utime(ground.directory / kept, (before, before))
    ground.reap()
    assert not half_made.exists()
    assert not half_removed.exists()
    assert ground.runs(kept)


def test_a_listing_speaks_of_its_own_engine_only() -> None:
    listing = Listing(Engine("fake", FakeExecutor()), "one", frozenset())
    assert listing.speaks_of("fake", "one")
    assert not listing.speaks_of("fake", "two")
    assert not replace(listing).speaks_of("other", "one")


# Whole workers ------------------------------------------------------------------------------------


def test_a_worker_looks_again_and_again_not_only_at_its_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reaper, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(Reaper, "AFTER", timedelta(seconds=2))
    with working(queues=["another"]):
        for _ in range(3):
            job = lived("running", "completed")
            name = on_engine(world, job)
            wait_until(lambda name=name: name not in world.executions, "the remains to go")
            wait_until(lambda job=job: job.attempts.get().cleaned_up, "that to be noted")


@pytest.mark.parametrize("kind", KINDS)
def test_orphans_of_a_worker_whose_row_was_pruned_are_found(workers: Any, kind: str) -> None:
    """Row 4: the worker died and its row is gone before anybody looked for orphans."""
    if kind == "docker":
        workers.use_docker()
    first = workers.start("--executor", kind).wait_until_started()
    job = queue_job(kind, "sleep 600")
    wait_until(lambda: lives(job), "it to run")
    first.kill()
    Worker.objects.all().delete()
    before = JobAttempt.objects.get().worker_id
    workers.start("--executor", kind)
    wait_until(lambda: JobAttempt.objects.get().worker_id not in (before, None), "its adoption")
    wait_for(job, "running")
    lifecycle.stop([job.pk], StopKind.KILL)
    assert (settled(job).status, JobAttempt.objects.count()) == ("killed", 1)
    wait_until(lambda: not workers.left_behind(), "the remains to be removed")
    assert contradictions() == []


def test_check_jobs_names_the_orphans_of_a_pruned_worker(ground: Ground) -> None:
    job = lived("running")
    ground.start(ground.attempt_of(job))
    a_living_worker().delete()
    (found,) = told()
    assert (found["code"], found["level"], found["job_id"]) == (
        "attempt_orphaned",
        "note",
        str(job.pk),
    )
