"""What happens, as a stream over the real web server and in pages."""

from __future__ import annotations

import threading
from itertools import islice
from uuid import uuid4

import pytest
import requests
from django.db import OperationalError, connection, transaction

from container_manager import lifecycle
from container_manager.events.base import KEYS
from container_manager.models import ContainerJob, Dag, Event, StateHistory
from container_manager.models.event import EventSequencer
from container_manager.models.sequencing import take_all
from container_manager.states import StopKind
from tests.api.test_log_stream import address as log_of
from tests.api.test_log_stream import is_cut, never_reads
from tests.factories import JobFactory, UserFactory
from tests.support.api import Api, a_person, an_operator, problem
from tests.support.running import queue_job
from tests.support.streams import EventStream
from tests.support.web import live_site, make_person, member, operator, some_site, workers
from tests.support.workers import settled, wait_until
from tests.workflows.driving import begun, task

__all__ = ["live_site", "member", "operator", "workers"]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def listen(live_site, operator):
    """listen(state="failed") is a stream of an operator's."""

    def open_one(last=None, person=operator, **query):
        return EventStream(address(live_site, **query), person.headers, last)

    return open_one


def address(site, **query):
    words = [
        f"{name}={value}"
        for name, values in query.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return f"{site.url}/api/v1/events/?{'&'.join(words)}"


def moves(told):
    return [(each.data["entity_id"], each.data["new_state"]) for each in told]


def first(stream, count):
    return list(islice(stream, count))


# Streams ------------------------------------------------------------------------------------------


@pytest.mark.web
def test_what_happens_is_told_as_it_happens_without_any_other_process(listen):
    with listen() as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        job = JobFactory()
        (born,) = first(stream, 1)
        job.transition_to("queued")
        (moved,) = first(stream, 1)
    row = StateHistory.objects.get(entity_id=job.pk, version=1)
    assert tuple(born.data) == KEYS
    assert born.data == {
        "id": str(row.pk),
        "entity_type": "job",
        "entity_id": str(job.pk),
        "old_state": None,
        "new_state": "pending",
        "version": 1,
        "attempt": row.attempt,
        "actor": row.actor,
        "reason": row.reason,
        "metadata": row.metadata,
        "changed_at": row.changed_at.isoformat(),
    }
    assert (born.id, born.event) == ("1", "")
    assert (moved.id, moved.data["old_state"], moved.data["new_state"]) == (
        "2",
        "pending",
        "queued",
    )


@pytest.mark.web
def test_who_comes_back_gets_what_he_missed(listen):
    with listen() as stream:
        jobs = [JobFactory()]
        told = first(stream, 1)
        stream.cut()
    jobs += [JobFactory() for _ in range(5)]
    with listen(last=told[-1].id) as stream:
        told += first(stream, 2)
    with listen(last=told[-1].id, after=0) as stream:
        told += first(stream, 3)
    assert moves(told) == [(str(job.pk), "pending") for job in jobs]
    assert [each.id for each in told] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.web
def test_who_is_cut_off_before_the_first_event_has_a_place_to_go_on_from(listen):
    JobFactory()
    take_all()
    with listen() as stream:
        wait_until(lambda: stream.read_some() and stream.last)
        assert stream.last == "1"
    JobFactory()
    with listen(last=stream.last) as stream:
        assert stream.next().id == "2"


@pytest.mark.web
def test_what_happened_before_anybody_listened_is_no_news(listen):
    JobFactory()
    with listen() as stream:
        job = JobFactory()
        told = stream.next()
    assert (told.id, told.data["entity_id"]) == ("2", str(job.pk))


@pytest.mark.web
def test_a_stream_may_begin_with_what_was(listen):
    jobs = [JobFactory() for _ in range(300)]
    take_all()
    with listen(after=0) as stream:
        assert moves(first(stream, 300)) == [(str(job.pk), "pending") for job in jobs]
    with listen(after=298) as stream:
        assert [each.id for each in first(stream, 2)] == ["299", "300"]


@pytest.mark.web
def test_what_is_rolled_back_is_never_told_and_leaves_no_gap(listen):
    with listen() as stream:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            JobFactory()
            raise ZeroDivisionError
        job = JobFactory()
        (told,) = first(stream, 1)
    assert (told.id, told.data["entity_id"]) == ("1", str(job.pk))


@pytest.mark.web
def test_filters_choose_and_the_place_moves_on_with_what_was_left_out(workers, tmp_path, operator):
    environment = {"CONTAINER_MANAGER_STREAM_HEARTBEAT_SECONDS": "0.2"}
    with some_site(tmp_path, workers, **environment) as site:

        def listen(**query):
            return EventStream(address(site, after=0, **query), operator.headers)

        run = begun({"first": task()})
        jobs = [JobFactory() for _ in range(3)]
        for job in jobs:
            job.transition_to("queued")
        jobs[0].transition_to("running")
        take_all()
        newest = Event.objects.newest()
        with listen(entity_type="dag_run") as stream:
            assert {each.data["entity_id"] for each in first(stream, 2)} == {str(run.pk)}
        with listen(entity_type="dag_run,task_instance", state=["running"]) as stream:
            assert {each.data["new_state"] for each in first(stream, 1)} == {"running"}
        with listen(entity_id=[jobs[1].pk, jobs[2].pk], state="queued") as stream:
            assert moves(first(stream, 2)) == [(str(job.pk), "queued") for job in jobs[1:]]
            wait_until(lambda: stream.read_some() and stream.last == str(newest))
        with listen(entity_id=uuid4()) as stream:
            wait_until(lambda: stream.read_some() and stream.last == str(newest))


@pytest.mark.web
def test_people_see_what_became_of_their_own_and_operators_everything(listen, member, operator):
    other = make_person("other")
    run = begun({"first": task()})
    Dag.objects.update(created_by=member.user)
    ContainerJob.objects.update(created_by=member.user)
    jobs = [JobFactory(created_by=owner) for owner in (member.user, other.user, None)]
    take_all()
    of_run = StateHistory.objects.exclude(entity_id__in=[job.pk for job in jobs])
    ids = {str(pk) for pk in of_run.values_list("entity_id", flat=True)}
    assert str(run.pk) in ids
    with listen(person=operator, after=0) as stream:
        everything = first(stream, Event.objects.count())
    assert {each.data["entity_id"] for each in everything} == ids | {str(job.pk) for job in jobs}
    last = JobFactory(created_by=member.user)
    with listen(person=member, after=0) as stream:
        mine = []
        while str(last.pk) not in {each.data["entity_id"] for each in mine}:
            mine += first(stream, 1)
    assert {each.data["entity_id"] for each in mine} == ids | {str(jobs[0].pk), str(last.pk)}
    with listen(person=other, after=0) as stream:
        assert moves(first(stream, 1)) == [(str(jobs[1].pk), "pending")]


@pytest.mark.web
@pytest.mark.parametrize("by", ["header", "query"])
def test_who_missed_what_is_no_longer_kept_is_told_so_and_goes_on(listen, by):
    jobs = [JobFactory() for _ in range(5)]
    take_all()
    Event.objects.filter(sequence__lte=3).delete()
    given = {"last": "1"} if by == "header" else {"after": 1}
    with listen(**given) as stream:
        resync, *told = first(stream, 3)
    assert (resync.event, resync.id) == ("resync", "3")
    assert resync.data == {"after": 1, "oldest": 4, "goes_on_after": 3}
    assert moves(told) == [(str(job.pk), "pending") for job in jobs[3:]]
    with listen(last="3") as stream:
        assert stream.next().id == "4", "nothing was lost"


@pytest.mark.web
def test_who_knows_events_of_a_database_that_was_put_back_is_told_so(listen):
    JobFactory()
    take_all()
    with listen(last="1000") as stream:
        resync = stream.next()
        assert resync.data == {"after": 1000, "oldest": 1, "goes_on_after": 1}
        job = JobFactory()
        assert stream.next().data["entity_id"] == str(job.pk)


@pytest.mark.web
def test_a_client_that_never_reads_is_dropped_and_others_miss_nothing(workers, tmp_path, operator):
    environment = {"CONTAINER_MANAGER_STREAM_SEND_SECONDS": "0.5"}
    with some_site(tmp_path, workers, **environment) as site:
        lazy = never_reads(address(site, after=0), operator)
        with EventStream(address(site), operator.headers) as stream:
            expected = 0
            while not is_cut(lazy):
                ContainerJob.objects.bulk_create(
                    [ContainerJob(name="n" * 200, image="a", command=["true"]) for _ in range(1000)]
                )
                expected += 1000
                told = first(stream, 1000)
                assert told[-1].id == str(expected)
        lazy.close()


@pytest.mark.web
def test_many_listeners_miss_nothing_while_many_things_happen(listen):
    """Moves by several connections at once, listeners that are cut and come back."""
    heard = [[] for _ in range(4)]
    total = 4 * 60

    def hear(number):
        while len(heard[number]) < total:
            last = heard[number][-1].id if heard[number] else "0"
            with listen(last=last) as stream:
                heard[number] += first(stream, min(number * 7 + 20, total - len(heard[number])))

    def move():
        for _ in range(20):
            job = JobFactory()
            job.transition_to("queued")
            job.transition_to("cancelled")
        connection.close()

    threads = [threading.Thread(target=hear, args=[number]) for number in range(len(heard))]
    threads += [threading.Thread(target=move) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    history = {str(pk) for pk in StateHistory.objects.values_list("pk", flat=True)}
    for told in heard:
        assert [int(each.id) for each in told] == list(range(1, total + 1))
        assert {each.data["id"] for each in told} == history
        versions = {}
        for each in told:
            assert each.data["version"] == versions.get(each.data["entity_id"], 0) + 1
            versions[each.data["entity_id"]] = each.data["version"]


@pytest.mark.web
@pytest.mark.processes
def test_what_a_worker_does_is_told(listen, workers):
    workers.start()
    with listen(entity_type="job") as stream:
        job = queue_job("process", "exit 3")
        told = first(stream, 3)
    assert moves(told) == [(str(job.pk), state) for state in ("queued", "running", "failed")]
    assert told[-1].data["reason"] == "exit_code"
    assert told[-1].data["metadata"]["exit_code"] == 3
    settled(job)


@pytest.mark.web
def test_a_server_that_stops_waits_for_no_listener(workers, tmp_path, operator):
    options = ["--timeout-graceful-shutdown", "30"]
    with some_site(tmp_path, workers, options=options) as site:
        streams = [EventStream(address(site), operator.headers) for _ in range(5)]
        JobFactory()
        for stream in streams:
            stream.next()
        site.terminate()
        for stream in streams:
            assert list(stream) == []
        site.ended(patience=20)
        assert "Cancel" not in site.said


@pytest.mark.web
def test_nobody_has_more_streams_of_all_kinds_than_one_may(workers, tmp_path, operator):
    job = JobFactory(status="running")
    with some_site(tmp_path, workers, CONTAINER_MANAGER_STREAMS_PER_USER="2") as site:
        with (
            EventStream(address(site), operator.headers),
            EventStream(log_of(site, job), operator.headers),
        ):
            for one_more in (address(site), log_of(site, job)):
                refused = requests.get(one_more, headers=operator.headers, timeout=60)
                problem(refused, 429, "too_many_streams")
        found = requests.head(address(site), headers=operator.headers, timeout=60)
        assert (found.status_code, found.content) == (200, b"")


# What is refused ----------------------------------------------------------------------------------


@pytest.fixture
def api(db):
    return Api(an_operator())


@pytest.mark.parametrize("last", ["x", "", "-1", "1.5", " 1", "1-0", "9" * 16, "0x1", "\u0661"])
def test_an_id_that_cannot_be_is_refused(api, last):
    told = problem(api.get("events/", {"Last-Event-ID": last}), 400, "invalid")
    assert list(told["errors"]) == ["Last-Event-ID"]
    problem(
        api.get("events/", {"Last-Event-ID": last, "Accept": "application/json"}), 400, "invalid"
    )


@pytest.mark.parametrize(
    "query",
    [
        *({"after": "x"}, {"after": -1}, {"after": "1.0"}, {"after": 10**16}, {"after": [1, 2]}),
        *({"entity_type": "x"}, {"entity_type": ""}, {"entity_type": "job,x"}, {"types": "job"}),
        *({"state": "x"}, {"state": ""}, {"state": "failed,"}, {"new_state": "failed"}),
        *({"entity_id": "x"}, {"entity_id": ""}, {"entity_id": "1"}, {"owner": 1}, {"follow": 1}),
        *(
            {"entity_type": "job", "state": "success"},
            {"entity_type": "dag_run", "state": "killed"},
        ),
        *({"limit": 0}, {"limit": 101}, {"token": "x"}),
    ],
)
def test_filters_that_cannot_be_are_refused(api, query):
    told = problem(api.get("events/", **query), 400, "invalid")
    assert set(told["errors"]) <= set(query)
    assert told["errors"]


def test_a_place_that_never_was_is_refused(api):
    JobFactory()
    take_all()
    told = problem(api.get("events/", after=2), 400, "invalid")
    assert told["errors"] == {"after": ["There is no event 2, the newest is 1."]}


def test_a_stranger_is_asked_who_he_is():
    problem(Api().get("events/"), 401, "not_authenticated")


def test_a_page_of_another_origin_cannot_use_a_session(api):
    headers = {"Origin": "https://evil.example.org"}
    for kind in ("text/event-stream", "application/json"):
        problem(api.get("events/", {**headers, "Accept": kind}), 403, "foreign_origin")


def test_a_server_that_cannot_stream_says_so(api):
    problem(api.get("events/"), 501, "needs_asgi")


def test_a_database_that_is_away_is_503(api, monkeypatch):
    def away(*_):
        raise OperationalError("gone")

    monkeypatch.setattr(EventSequencer.objects, "values_list", away)
    monkeypatch.setattr("container_manager.models.event.EventQuerySet.newest", away)
    answer = api.get("events/")
    problem(answer, 503, "database_unavailable")


# Pages --------------------------------------------------------------------------------------------


def page(api, **query):
    answer = api.get("events/", {"Accept": "application/json"}, **query)
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_pages_have_every_event_once(api):
    jobs = [JobFactory() for _ in range(25)]
    found, after = [], 0
    while True:
        told = page(api, after=after, limit=10)
        found += told["results"]
        after = told["after"]
        if not told["more"]:
            break
    assert [each["sequence"] for each in found] == list(range(1, 26))
    assert [each["entity_id"] for each in found] == [str(job.pk) for job in jobs]
    assert set(found[0]) == {"sequence", *KEYS}
    assert page(api, after=25) == {"results": [], "after": 25, "more": False, "oldest": 1}


def test_a_page_has_what_was_asked_for_and_may_be_seen():
    ada = a_person()
    mine, _other = JobFactory(created_by=ada), JobFactory(created_by=UserFactory())
    lifecycle.stop([mine.pk], StopKind.KILL)
    told = page(Api(ada), state="killed")
    assert [each["entity_id"] for each in told["results"]] == [str(mine.pk)]
    assert told["after"] == 3
    assert len(page(Api(ada))["results"]) == 2


def test_a_page_says_what_is_no_longer_kept(api):
    for _ in range(3):
        JobFactory()
    take_all()
    Event.objects.filter(sequence__lte=2).delete()
    told = page(api, after=1)
    assert [each["sequence"] for each in told["results"]] == [3]
    assert told["oldest"] == 3


def test_who_wants_little_of_much_gets_an_empty_page_and_goes_on(api, monkeypatch):
    monkeypatch.setattr("container_manager.api.events.LOOKED_AT", 2)
    monkeypatch.setattr("container_manager.events.feed.BATCH", 2)
    for _ in range(600):
        JobFactory.build().save()
    told = page(api, entity_id=uuid4())
    assert (told["results"], told["more"]) == ([], True)
    assert 0 < told["after"] < 600
