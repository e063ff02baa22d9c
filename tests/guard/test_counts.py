"""The counters are what the rows say, whoever writes, after each write and at every moment."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import contextmanager

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction

from container_manager import db_guard, guarding
from container_manager.models import ContainerJob, JobChange, JobCount, JobDuration, StateHistory
from container_manager.models.base import guarded_tables
from container_manager.models.job_counts import count_jobs, job_stats
from container_manager.states import JOB, JobStatus
from tests.factories import JobFactory, UserFactory
from tests.models.ways import execute, raw_id, raw_sql
from tests.support.counting import assert_exact, fold, miscounts
from tests.support.threads import in_threads

QUEUES, EXECUTORS, ISOLATIONS = ("default", "slow"), ("", "docker"), ("auto", "container")


class Writer:
    """Writes at random, in every way that a client has."""

    def __init__(self, seed: int, owners: int = 2) -> None:
        self.chance = random.Random(seed)
        self.owners = [UserFactory() for _ in range(owners)]
        self.jobs: list[ContainerJob] = []

    def looks(self) -> dict[str, object]:
        """What a job is counted by, but its state."""
        return {
            "queue": self.chance.choice(QUEUES),
            "executor": self.chance.choice(EXECUTORS),
            "isolation": self.chance.choice(ISOLATIONS),
            "created_by": self.chance.choice([None, *self.owners]),
            "duration_ms": self.duration(),
        }

    def duration(self) -> int | None:
        digits = self.chance.choice([None, 1, 2, 4, 7])
        return None if digits is None else self.chance.randrange(10**digits)

    def write(self) -> None:
        ways = [self.create, self.create_many, self.change, self.change_raw, self.move, self.delete]
        self.chance.choice([*ways, self.change, self.move, self.move])()

    def create(self) -> None:
        self.jobs.append(JobFactory(status=self.chance.choice(JobStatus.values), **self.looks()))

    def create_many(self) -> None:
        status = self.chance.choice(JobStatus.values)
        made = [JobFactory.build(status=status, **self.looks()) for _ in range(5)]
        self.jobs += ContainerJob.objects.bulk_create(made)

    def some(self) -> list[ContainerJob]:
        return self.chance.sample(self.jobs, min(len(self.jobs), 3))

    def change(self) -> None:
        name, value = self.chance.choice([*self.looks().items()])
        chosen = ContainerJob.objects.filter(pk__in=[job.pk for job in self.some()])
        chosen.update(**{name: value})

    def change_raw(self) -> None:
        column = self.chance.choice(["queue", "executor", "isolation"])
        for job in self.some():
            execute(
                f"UPDATE container_jobs SET {column} = %s, duration_ms = %s WHERE id = %s",
                [self.looks()[column], self.duration(), raw_id(job)],
            )

    def move(self) -> None:
        for job in self.some():
            job.refresh_from_db()
            if targets := JOB.get_next_states(job.status):
                raw_sql(job, self.chance.choice(targets))

    def delete(self) -> None:
        for job in self.some()[:1]:
            job.refresh_from_db()
            if job.status != JobStatus.RUNNING:
                self.jobs.remove(job)
                job.delete()


@pytest.mark.django_db
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_written_the_counters_are_the_rows(seed: int) -> None:
    writer = Writer(seed)
    for number in range(60):
        writer.write()
        if number % 7 == 0:
            fold()
        assert_exact()
    gone = writer.owners.pop()
    key = gone.pk
    gone.delete()
    assert count_jobs(key) == 0
    assert_exact()
    ContainerJob.objects.filter(status=JobStatus.RUNNING).update(status=JobStatus.KILLED)
    execute("DELETE FROM container_jobs")
    assert_exact()
    assert count_jobs() == job_stats()["total"] == 0


@pytest.mark.django_db
def test_what_is_rolled_back_or_refused_is_not_counted() -> None:
    job = JobFactory(status="completed", duration_ms=1500)
    before = job_stats()
    with pytest.raises(OSError, match="half way"), transaction.atomic():
        Writer(1).create_many()
        ContainerJob.objects.filter(pk=job.pk).update(duration_ms=9, queue="other")
        fold()
        raise OSError("half way")
    with pytest.raises(DatabaseError), transaction.atomic():
        execute("UPDATE container_jobs SET status = 'running', queue = 'other'")
    assert job_stats() == before
    assert_exact()


@pytest.mark.django_db
def test_a_write_that_changes_nothing_counted_writes_no_change() -> None:
    job = JobFactory(status="running")
    before = JobChange.objects.count()
    ContainerJob.objects.filter(pk=job.pk).update(
        name="other", queue=job.queue, duration_ms=12, labels={"a": "b"}
    )
    assert JobChange.objects.count() == before


@pytest.mark.django_db
def test_jobs_that_look_alike_are_one_change(django_assert_num_queries) -> None:
    JobFactory.create_batch(20)
    before = JobChange.objects.order_by("-pk").first().pk
    ContainerJob.objects.update(status=JobStatus.QUEUED)
    written = JobChange.objects.filter(pk__gt=before)
    assert {(change.status, abs(change.jobs)) for change in written} <= {
        *(("pending", n) for n in (1, 20)),
        *(("queued", n) for n in (1, 20)),
    }
    if connection.vendor == "postgresql":
        assert sorted(written.values_list("jobs", flat=True)) == [-20, 20]


@pytest.mark.django_db
def test_changes_are_folded_and_counters_that_came_to_nothing_go() -> None:
    owner = UserFactory()
    job = JobFactory(status="completed", duration_ms=61_234, created_by=owner)
    fold()
    assert not JobChange.objects.filter(duration_ms=61_234).exists()
    scopes = {"*", f"={owner.pk}"}
    found = JobCount.objects.filter(status="completed", jobs__gte=1)
    assert set(found.values_list("scope", flat=True)) == scopes
    stretches = JobDuration.objects.filter(scope=f"={owner.pk}").order_by("width")
    assert list(stretches.values_list("width", "from_ms", "jobs", "total_ms")) == [
        (1, 61_234, 1, 61_234),
        (100, 61_200, 1, 61_234),
        (10_000, 60_000, 1, 61_234),
        (1_000_000, 0, 1, 61_234),
    ]
    job.delete()
    fold()
    fold()
    assert_exact()
    assert (JobCount.objects.count(), JobDuration.objects.count()) == (0, 0)
    assert_exact()


@pytest.mark.django_db
def test_no_more_than_a_few_thousand_changes_are_ever_left_to_a_reader() -> None:
    for queue in range(6):
        ContainerJob.objects.bulk_create(
            JobFactory.build(status="completed", queue=f"q{queue}", duration_ms=number)
            for number in range(400)
        )
    assert JobChange.objects.count() < 2 * db_guard.FOLD_EVERY
    assert_exact()


@pytest.mark.django_db
def test_absurd_durations_do_not_stop_anybody() -> None:
    most = 2**63 - 1
    jobs = [JobFactory(status="completed", duration_ms=most) for _ in range(3)]
    fold()
    assert miscounts() == []
    assert job_stats()["p95_duration_ms"] == db_guard.LONGEST_MS
    ContainerJob.objects.filter(pk=jobs[0].pk).update(duration_ms=1)
    assert job_stats()["p50_duration_ms"] == db_guard.LONGEST_MS
    assert job_stats()["total"] == 3


# Where the guard stepped aside --------------------------------------------------------------------


def drop(trigger: str, table: str) -> None:
    on = f" ON {table}" if connection.vendor == "postgresql" else ""
    execute(f"DROP TRIGGER {trigger}{on}")


def migrate() -> None:
    call_command("migrate", verbosity=0, interactive=False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("trigger", "table"),
    [
        ("cm_count_insert_container_jobs", "container_jobs"),
        ("cm_count_update_container_jobs", "container_jobs"),
        ("cm_count_delete_container_jobs", "container_jobs"),
        ("cm_fold_job_changes", "job_changes"),
    ],
)
def test_what_was_written_without_a_trigger_is_counted_when_it_is_repaired(trigger, table) -> None:
    writer = Writer(3)
    writer.create_many()
    drop(trigger, table)
    for _ in range(20):
        writer.write()
    migrate()
    assert_exact()
    writer.write()
    assert_exact()


@pytest.mark.django_db(transaction=True)
def test_a_migrate_that_finds_the_guard_whole_counts_nothing(monkeypatch) -> None:
    monkeypatch.setattr(db_guard, "_count_anew", lambda *_: pytest.fail("counted anew"))
    JobFactory()
    migrate()
    assert_exact()


@pytest.mark.django_db(transaction=True)
def test_what_was_written_while_the_guard_was_lifted_is_counted() -> None:
    jobs = [JobFactory(status="completed", duration_ms=5) for _ in range(3)]
    with guarding.lifted("default"):
        execute("UPDATE container_jobs SET queue = 'moved' WHERE id = %s", [raw_id(jobs[0])])
        execute("DELETE FROM container_jobs WHERE id = %s", [raw_id(jobs[1])])
    assert count_jobs(queue=["moved"]) == 1
    assert_exact()


@pytest.mark.django_db(transaction=True)
def test_flush_leaves_no_counters() -> None:
    Writer(5).create_many()
    fold()
    call_command("flush", verbosity=0, interactive=False)
    for counters in (JobCount, JobDuration, JobChange):
        assert not counters.objects.exists()
    assert_exact()


@pytest.mark.django_db(transaction=True)
def test_the_counters_come_and_go_with_their_migration() -> None:
    job = JobFactory(status="completed", duration_ms=42)
    call_command("migrate", "container_manager", "0004", verbosity=0)
    assert db_guard.differences(connection, guarded_tables()) == []
    ContainerJob.objects.filter(pk=job.pk).update(queue="before")
    assert StateHistory.objects.of(job).count() == 1
    migrate()
    assert count_jobs(queue=["before"], status=["completed"]) == 1
    assert_exact()


# PostgreSQL: many at once -------------------------------------------------------------------------


@contextmanager
def meanwhile(*actions: Callable[[], None]):
    """Runs each in a thread of its own, again and again; what one raises is raised here."""
    ended, errors = threading.Event(), []

    def again(action: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                action()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=again, args=[action]) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []


def assert_counted() -> None:
    assert miscounts() == []


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_eight_writers_two_folders_and_readers_at_once() -> None:
    def write(seed: int) -> Callable[[], None]:
        writer = Writer(seed)

        def some() -> None:
            for _ in range(40):
                with transaction.atomic():
                    writer.write()
                    writer.write()

        return some

    with meanwhile(fold, fold, assert_counted, assert_counted):
        in_threads(*(write(seed) for seed in range(8)))
    fold()
    assert_exact()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_fold_that_is_not_committed_makes_nobody_wait_or_miscount() -> None:
    JobFactory(status="completed", duration_ms=5)
    fold()

    def others_go_on() -> None:
        execute("SET lock_timeout = '1s'")
        JobFactory(status="completed", duration_ms=5)
        fold()
        assert_counted()
        assert count_jobs() == 2

    with transaction.atomic():
        JobFactory(status="completed", duration_ms=5)
        fold()
        in_threads(others_go_on)
    assert_exact()
    assert JobCount.objects.filter(scope="*", status="completed").count() > 1
    JobFactory(status="completed", duration_ms=5)
    fold()
    assert JobCount.objects.get(scope="*", status="completed").jobs == 4
    assert_exact()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_fold_never_breaks_a_transaction_with_an_older_snapshot(isolation) -> None:
    JobFactory(status="completed", duration_ms=5)
    fold()

    def fold_elsewhere() -> None:
        JobFactory(status="completed", duration_ms=6)
        fold()

    with transaction.atomic():
        execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        assert count_jobs() == 1
        in_threads(fold_elsewhere)
        JobFactory(status="completed", duration_ms=7)
        fold()
        assert count_jobs() == 2
    assert_exact()
    assert count_jobs() == 3


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_a_repair_counts_what_others_are_writing() -> None:
    def write() -> None:
        JobFactory(status="queued")

    with meanwhile(write, write, write):
        for _ in range(5):
            drop("cm_count_insert_container_jobs", "container_jobs")
            JobFactory()
            assert db_guard.install(connection, guarded_tables())
            assert_counted()
    assert_exact()


@pytest.mark.postgres
@pytest.mark.django_db
def test_who_may_write_jobs_but_no_counters_is_counted() -> None:
    execute("CREATE ROLE clerk")
    execute("GRANT SELECT, INSERT, UPDATE, DELETE ON container_jobs, state_history TO clerk")
    execute("SET LOCAL ROLE clerk")
    job = JobFactory(status="pending")
    execute("UPDATE container_jobs SET status = 'queued', queued_at = now(), version = 2")
    with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
        execute("INSERT INTO job_changes SELECT * FROM job_changes")
    execute("RESET ROLE")
    assert count_jobs(status=[JobStatus.QUEUED]) == 1
    ContainerJob.objects.filter(pk=job.pk).delete()
    assert_exact()


@pytest.mark.postgres
@pytest.mark.django_db
def test_nobody_puts_the_counting_on_a_table_of_his_own() -> None:
    execute("CREATE ROLE forger")
    execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO forger")
    execute("CREATE TEMP TABLE mine (LIKE container_jobs) ON COMMIT DROP")
    execute("ALTER TABLE mine OWNER TO forger")
    execute("SET LOCAL ROLE forger")
    with pytest.raises(DatabaseError, match="permission denied for function"), transaction.atomic():
        execute(
            "CREATE TRIGGER forge AFTER INSERT ON mine REFERENCING NEW TABLE AS new_rows"
            " FOR EACH STATEMENT EXECUTE FUNCTION public.cm_count_insert_container_jobs()"
        )


@pytest.mark.postgres
@pytest.mark.django_db
def test_copy_upsert_and_merge_are_counted() -> None:
    job = JobFactory(status="completed", duration_ms=3)
    names = ", ".join(field.column for field in ContainerJob._meta.concrete_fields)
    execute(
        f"INSERT INTO container_jobs ({names}) SELECT {names} FROM container_jobs WHERE id = %s"
        " ON CONFLICT (id) DO UPDATE SET duration_ms = 4, queue = 'upserted'",
        [raw_id(job)],
    )
    assert_exact()
    execute(
        "MERGE INTO container_jobs j USING (SELECT id FROM container_jobs) s ON s.id = j.id"
        " WHEN MATCHED THEN UPDATE SET duration_ms = 5, queue = 'merged'"
    )
    assert job_stats()["by_queue"] == {"merged": 1}
    assert_exact()
