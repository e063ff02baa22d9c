"""What is read from the counters."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from container_manager.conf import executors
from container_manager.models import ContainerJob, JobChange
from container_manager.models.job_counts import count_jobs, counts_by_queue, job_stats
from container_manager.models.job_stats import stats_of_rows
from container_manager.states import Isolation, JobStatus
from tests.factories import JobFactory, UserFactory
from tests.support.counting import assert_exact, fold

pytestmark = pytest.mark.django_db


def test_without_jobs_every_known_word_is_there_and_zero() -> None:
    stats = job_stats()
    assert list(stats["by_status"]) == JobStatus.values
    assert list(stats["by_isolation"]) == Isolation.values
    assert set(stats["by_executor"]) == {"any", *executors()}
    assert stats["by_queue"] == {}
    counts = [stats["total"], stats["queue_depth"], *stats["by_status"].values()]
    times = [stats[name] for name in stats if name.endswith(("_ms", "_seconds"))]
    assert {*counts, *times} == {0}
    assert len(times) == 4


def test_each_number_is_of_the_owner_who_is_asked_for() -> None:
    mine, yours = UserFactory(), UserFactory()
    JobFactory(created_by=mine, status="completed", duration_ms=10, queue="a", executor="docker")
    JobFactory(created_by=mine, status="queued", queue="a")
    JobFactory(created_by=yours, status="completed", duration_ms=30, queue="b")
    JobFactory(status="failed", duration_ms=99, isolation="container")
    assert job_stats()["total"] == 4
    assert job_stats(mine)["by_queue"] == {"a": 2}
    assert job_stats(mine)["by_executor"] == {"any": 1, "docker": 1, "process": 0}
    assert job_stats(yours)["avg_duration_ms"] == 30
    assert job_stats()["avg_duration_ms"] == 20
    assert job_stats()["by_isolation"]["container"] == 1
    assert (job_stats(mine)["queue_depth"], job_stats(yours)["queue_depth"]) == (1, 0)
    assert_exact()


def test_a_user_is_asked_for_by_object_or_key() -> None:
    user = UserFactory()
    JobFactory(created_by=user)
    assert count_jobs(user) == count_jobs(user.pk) == count_jobs(str(user.pk)) == 1


@pytest.mark.parametrize(
    ("among", "count"),
    [
        ({}, 4),
        ({"status": [JobStatus.QUEUED]}, 2),
        ({"status": ["queued", "failed"]}, 3),
        ({"status": ["queued"], "queue": ["a"]}, 1),
        ({"executor": ["", "docker"]}, 4),
        ({"executor": ["docker"]}, 1),
        ({"isolation": ["container"], "status": ["pending"]}, 0),
        ({"queue": ["100%", "it's"]}, 0),
        ({"queue": []}, 0),
    ],
    ids=str,
)
def test_jobs_are_counted_by_any_dimensions(among, count) -> None:
    JobFactory(status="queued", queue="a")
    JobFactory(status="queued", executor="docker")
    JobFactory(status="failed", isolation="container")
    JobFactory()
    assert count_jobs(**among) == count
    fold()
    assert count_jobs(**among) == count


def test_an_unknown_dimension_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="not counted by colour"):
        count_jobs(colour=["red"])


def test_counts_by_queue_name_what_is_there() -> None:
    user = UserFactory()
    JobFactory(queue="a", created_by=user), JobFactory(queue="a", status="queued"), JobFactory()
    assert counts_by_queue() == {"a": {"pending": 1, "queued": 1}, "default": {"pending": 1}}
    assert counts_by_queue(user) == {"a": {"pending": 1}}


def spread(kind: str, chance: random.Random) -> int:
    return {
        "one value": lambda: 60_000,
        "milliseconds": lambda: chance.randrange(9),
        "seconds": lambda: round(chance.lognormvariate(9, 1)),
        "hours": lambda: chance.randrange(5 * 3_600_000),
        "seams": lambda: chance.choice([0, 99, 100, 9_999, 10_000, 999_999, 1_000_000, 1_000_001]),
    }[kind]()


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 19, 20, 21, 100])
@pytest.mark.parametrize("kind", ["one value", "milliseconds", "seconds", "hours", "seams"])
def test_percentiles_are_the_nearest_rank(kind: str, count: int, folded: bool) -> None:
    chance = random.Random(count)
    durations = sorted(spread(kind, chance) for _ in range(count))
    user = UserFactory()
    ContainerJob.objects.bulk_create(
        JobFactory.build(status="completed", duration_ms=each, created_by=user)
        for each in durations
    )
    if folded:
        fold()
        ContainerJob.objects.bulk_create(
            [JobFactory.build(status="failed", duration_ms=1), JobFactory.build(status="pending")]
        )
    for owner in (None, user):
        stats = job_stats(owner)
        assert stats["p50_duration_ms"] == durations[-(-count * 50 // 100) - 1]
        assert stats["p95_duration_ms"] == durations[-(-count * 95 // 100) - 1]
        assert stats["avg_duration_ms"] == round(sum(durations) / count)


def test_the_oldest_in_the_queue_is_of_the_owner() -> None:
    user, now = UserFactory(), timezone.now()
    JobFactory(status="queued", queued_at=now - timedelta(minutes=5), created_by=user)
    JobFactory(status="queued", queued_at=now - timedelta(minutes=9))
    JobFactory(status="running", queued_at=now - timedelta(minutes=30))
    assert 540 <= job_stats()["oldest_queued_seconds"] < 560
    assert 300 <= job_stats(user)["oldest_queued_seconds"] < 320
    assert job_stats(UserFactory())["oldest_queued_seconds"] == 0


def test_a_clock_that_is_behind_gives_no_negative_wait() -> None:
    JobFactory(status="queued", queued_at=timezone.now() + timedelta(hours=1))
    assert job_stats()["oldest_queued_seconds"] == 0


def test_statistics_are_one_query(django_assert_num_queries) -> None:
    user = UserFactory()
    for ask in (job_stats, count_jobs, counts_by_queue, lambda: job_stats(user)):
        with django_assert_num_queries(1):
            ask()


def test_statistics_of_all_come_from_the_counters_and_of_some_from_their_rows() -> None:
    JobFactory(queue="a"), JobFactory(queue="b")
    JobChange.objects.create(status="pending", queue="planted", isolation="auto", jobs=5)
    assert ContainerJob.objects.stats()["total"] == 7
    assert ContainerJob.objects.order_by("name").stats()["by_queue"]["planted"] == 5
    for some in (
        ContainerJob.objects.filter(queue="a"),
        ContainerJob.objects.exclude(queue="b"),
        ContainerJob.objects.all()[:1],
        ContainerJob.objects.filter(queue="a").union(ContainerJob.objects.none()),
    ):
        if not some.query.combinator and not some.query.is_sliced:
            assert some.stats()["total"] == 1
        assert not some._is_everything()
    assert ContainerJob.objects.none().stats()["total"] == 0
    assert stats_of_rows(ContainerJob.objects.all())["total"] == 2


def plan_of(ask) -> str:
    """How the database would answer the one query of `ask`."""
    seen: list[tuple[str, object]] = []

    def note(execute, sql, params, many, context):
        seen.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        ask()
    ((sql, parameters),) = seen
    explain = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"{explain} {sql}", parameters)
        return "\n".join(str(row[-1]) for row in cursor.fetchall())


def test_of_the_table_of_jobs_only_the_first_of_an_index_is_read() -> None:
    user, others = UserFactory(), [UserFactory() for _ in range(3)]
    JobFactory(status="queued", created_by=user)
    ContainerJob.objects.bulk_create(
        JobFactory.build(status="queued", created_by=others[number % 3]) for number in range(600)
    )
    with connection.cursor() as cursor:  # so few rows that no statistics speak for any index
        cursor.execute("ANALYZE")
    for ask, index in ((job_stats, "jobs_oldest"), (lambda: job_stats(user), "of_owner")):
        lines = [line for line in plan_of(ask).splitlines() if "container_jobs" in line]
        assert len(lines) == 1
        assert index in lines[0]
        assert "Seq Scan" not in lines[0]
