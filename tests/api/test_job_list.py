"""The list of jobs: pages, filters, order; what it costs, and who sees what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from container_manager.models import ContainerJob
from container_manager.states import JobStatus
from tests.factories import JobFactory, UserFactory
from tests.support.api import Api, a_person, an_operator, problem

pytestmark = pytest.mark.django_db


@pytest.fixture
def api() -> Api:
    return Api(an_operator())


def listed(api: Api, **query: Any) -> list[str]:
    answer = api.get("jobs/", **query)
    assert answer.status_code == 200, answer.content
    told = answer.json()
    assert told["count"] >= len(told["results"])
    return [row["name"] for row in told["results"]]


def names(*jobs: ContainerJob) -> list[str]:
    return [job.name for job in jobs]


# Pages --------------------------------------------------------------------------------------------


def test_an_empty_list_is_a_page_with_nothing_on_it(api):
    nothing = {"count": 0, "next": None, "previous": None, "results": []}
    assert api.get("jobs/").json() == nothing


def test_the_list_is_newest_first_and_20_rows_long_unless_told_otherwise(api):
    made = [JobFactory() for _ in range(25)]
    told = api.get("jobs/").json()
    assert [row["name"] for row in told["results"]] == names(*reversed(made))[:20]
    assert told["count"] == 25


def test_each_job_is_on_one_page_also_where_all_were_made_at_once(api):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    made = {JobFactory(created_at=moment).name for _ in range(7)}
    pages = [listed(api, limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert {name for page in pages for name in page} == made


def test_the_addresses_of_the_neighbours_lead_there_and_keep_the_filters(api):
    for _ in range(5):
        JobFactory(queue="night")
    middle = api.get("jobs/", limit=2, offset=2, queue="night").json()
    after, before = (api.client.get(middle[name]).json() for name in ("next", "previous"))
    assert (after["next"], before["previous"]) == (None, None)
    assert [len(page["results"]) for page in (before, middle, after)] == [2, 2, 1]
    assert after["count"] == 5
    assert "queue=night" in middle["next"]


def test_a_page_beyond_the_end_is_empty(api):
    JobFactory()
    for offset in (1, 10**6, 2**53 - 1):
        told = api.get("jobs/", offset=offset).json()
        assert (told["count"], told["results"], told["next"]) == (1, [], None)


@pytest.mark.parametrize(
    "limit", ["0", "-1", "101", "1000000000", "abc", "", "1.5", "1e1", "\u0661", "1_0"]
)
def test_a_limit_that_is_none_from_1_to_100_is_refused(limit, api):
    told = problem(api.get("jobs/", limit=limit), 400, "invalid")
    assert told["errors"] == {"limit": ["Must be a whole number from 1 to 100."]}


@pytest.mark.parametrize("offset", ["-1", "abc", "", str(2**53), "9" * 40])
def test_an_offset_that_is_none_is_refused(offset, api):
    assert list(problem(api.get("jobs/", offset=offset), 400, "invalid")["errors"]) == ["offset"]


def test_a_parameter_that_is_meant_once_is_refused_twice(api):
    answer = api.client.get("/api/v1/jobs/?limit=1&limit=2")
    assert problem(answer, 400, "invalid")["errors"] == {"limit": ["May be given once only."]}


# What a row says ----------------------------------------------------------------------------------


def test_a_row_says_everything_but_the_output_and_the_values_of_the_environment(api):
    ada = UserFactory(username="ada")
    job = JobFactory(status="failed", created_by=ada, output="much", environment={"KEY": "secret"})
    answer = api.get("jobs/")
    (row,) = answer.json()["results"]
    assert row["environment"] == {"KEY": "***"}
    assert b"secret" not in answer.content
    assert "output" not in row
    assert (row["id"], row["owner"], row["created_by"]) == (str(job.pk), "ada", ada.pk)
    assert row["allowed_transitions"] == ["retrying", "cancelled"]
    assert datetime.fromisoformat(row["completed_at"]) == job.completed_at


def test_rows_with_strange_contents_do_not_break_the_list(api):
    job = JobFactory()
    ContainerJob.objects.filter(pk=job.pk).update(environment=["A"], labels=[], command={})
    (row,) = api.get("jobs/").json()["results"]
    assert (row["environment"], row["labels"], row["command"]) == ({}, [], {})


# What it costs ------------------------------------------------------------------------------------


def questions(api: Api, **query: Any) -> int:
    with CaptureQueriesContext(connection) as asked:
        assert api.get("jobs/", **query).status_code == 200
    return len(asked)


@pytest.mark.parametrize("query", [{}, {"status": "failed"}, {"search": "job"}, {"owner": "ada"}])
def test_many_rows_cost_no_more_questions_than_one(query, api):
    ada = UserFactory(username="ada")
    JobFactory(status="failed", created_by=ada)
    one = questions(api, limit=100, **query)
    for _ in range(30):
        JobFactory(status="failed", created_by=UserFactory())
        JobFactory(status="failed", created_by=ada)
    assert questions(api, limit=100, **query) == one


@pytest.mark.parametrize("query", [{}, {"status": "failed,queued"}, {"queue": "default"}])
def test_a_count_that_somebody_keeps_is_not_counted_again(query, api):
    JobFactory(status="failed")
    with CaptureQueriesContext(connection) as asked:
        api.get("jobs/", **query)
    of_jobs = [each["sql"] for each in asked if 'FROM "container_jobs"' in each["sql"]]
    assert len(of_jobs) == 1, "the page"
    assert "COUNT(" not in of_jobs[0].upper()


def test_the_rows_of_a_deep_page_are_found_by_their_ids(api):
    """The offset walks over ids alone, which an index answers."""
    for _ in range(12):
        JobFactory()
    with CaptureQueriesContext(connection) as asked:
        api.get("jobs/", limit=2, offset=8)
    (page,) = [each["sql"] for each in asked if "OFFSET 8" in each["sql"]]
    walk = page.partition(" IN (SELECT ")[2]
    assert "OFFSET 8" in walk
    assert "," not in walk.partition(" FROM ")[0]


# Filters ------------------------------------------------------------------------------------------


def test_states_may_be_repeated_or_separated_by_commas(api):
    made = {status: JobFactory(status=status).name for status in JobStatus}
    wanted = {made["failed"], made["killed"]}
    assert set(listed(api, status=["failed", "killed"])) == wanted
    assert set(listed(api, status="failed,killed")) == wanted
    assert listed(api, status="running") == [made["running"]]


@pytest.mark.parametrize(
    ("field", "value"), [("queue", "night"), ("isolation", "gvisor"), ("executor", "docker")]
)
def test_jobs_are_found_by_what_they_ask_for(field, value, api):
    JobFactory()
    wanted = JobFactory(**{field: value})
    told = api.get("jobs/", **{field: value}).json()
    assert ([row["name"] for row in told["results"]], told["count"]) == ([wanted.name], 1)


def test_any_means_jobs_that_leave_the_executor_open(api):
    JobFactory(executor="docker")
    open_one = JobFactory()
    assert listed(api, executor="any") == [open_one.name]
    assert len(listed(api, executor="any,docker")) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "done"),
        ("status", ""),
        ("status", "failed,"),
        ("status", "FAILED"),
        ("isolation", "vm"),
        ("executor", "nobody"),
        ("queue", "no good"),
        ("queue", ""),
        ("queue", "q" * 101),
        ("label", "team"),
        ("label", "te am:data"),
        ("label", ":x"),
        ("ordering", "output"),
        ("ordering", "created_by__password"),
        ("ordering", "--created_at"),
        ("search", ""),
        ("search", "x" * 201),
        ("owner", ""),
        ("owner", "x" * 151),
    ],
)
def test_a_filter_that_means_nothing_is_refused(field, value, api):
    told = problem(api.get("jobs/", **{field: value}), 400, "invalid")
    assert list(told["errors"]) == [field]


@pytest.mark.parametrize(
    "name", ["created_by", "created_by__username", "foo", "status__in", "page"]
)
def test_an_unknown_filter_is_refused_with_those_there_are(name, api):
    told = problem(api.get("jobs/", **{name: "x"}), 400, "invalid")
    (message,) = told["errors"][name]
    assert "there are completed_after, " in message


def test_labels_narrow(api):
    both = JobFactory(labels={"team": "data", "stage": "a:b"})
    JobFactory(labels={"team": "data"})
    JobFactory(labels={"team": "other", "stage": "a:b"})
    assert len(listed(api, label="team:data")) == 2
    assert listed(api, label=["team:data", "stage:a:b"]) == [both.name]
    assert api.get("jobs/", label="team:data").json()["count"] == 2


def test_an_empty_label_value_is_a_value(api):
    empty = JobFactory(labels={"team": ""})
    JobFactory(labels={"team": "x"})
    assert listed(api, label="team:") == [empty.name]


def test_dates_take_their_beginning_and_leave_out_their_end(api):
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    before, at, later = (
        JobFactory(created_at=noon + timedelta(hours=shift)) for shift in (-1, 0, 1)
    )
    assert listed(api, created_after="2026-01-31T12:00:00Z") == names(later, at)
    assert listed(api, created_before="2026-01-31T12:00:00Z") == names(before)
    assert listed(api, created_after="2026-01-31T13:00:00+01:00") == names(later, at)
    day = {"created_after": "2026-01-31T11:30:00z", "created_before": "2026-01-31t12:30:00.5Z"}
    assert listed(api, **day) == names(at)


def test_jobs_are_found_by_when_they_ended(api):
    JobFactory()
    ended = JobFactory(status="completed")
    assert listed(api, completed_after="2020-01-01T00:00:00Z") == [ended.name]
    assert listed(api, completed_before="2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "moment",
    [
        "2026-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2026-01-01T00:00:00",
        "2026-01-01",
        "2026-01-01T25:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-01-01T00:00:00 01:00",
        "now",
        "",
        "1767225600",
        "٢026-01-01T00:00:00Z",
    ],
)
@pytest.mark.parametrize("field", ["created_after", "completed_before"])
def test_a_date_that_is_none_is_refused(field, moment, api):
    assert list(problem(api.get("jobs/", **{field: moment}), 400, "invalid")["errors"]) == [field]


def test_a_reversed_range_is_refused(api):
    reversed_range = {
        "created_after": "2026-02-01T00:00:00Z",
        "created_before": "2026-01-01T00:00:00Z",
    }
    told = problem(api.get("jobs/", **reversed_range), 400, "invalid")
    assert told["errors"] == {"created_before": ["Must not lie before created_after."]}


# Search and order ---------------------------------------------------------------------------------


def test_search_looks_at_name_image_and_the_whole_command_line(api):
    JobFactory(name="nothing", image="alpine", command=["true"])
    by_name = JobFactory(name="A needle here")
    by_image = JobFactory(name="b", image="registry/needle:1")
    by_command = JobFactory(name="c", command=["/bin/sh", "-c", "echo needle"])
    assert set(listed(api, search="needle")) == set(names(by_name, by_image, by_command))
    assert listed(api, search="-c echo nee") == ["c"]


def test_search_finds_an_id_by_a_part_of_it(api):
    JobFactory()
    wanted = JobFactory()
    assert listed(api, search=str(wanted.pk)) == [wanted.name]
    assert listed(api, search=str(wanted.pk)[-13:].upper()) == [wanted.name]


@pytest.mark.parametrize("text", ["50%", "a_b", "it's", "back\\slash", 'say "x"', "ä€", "(a+)+$"])
def test_search_is_literal(text, api):
    JobFactory(name="50x axb its backslash say x aaaaaaaa")
    wanted = JobFactory(name=f"has {text} in it")
    in_command = JobFactory(name="command", command=["echo", f"has {text} in it"])
    assert listed(api, search=text) == names(in_command, wanted)


@pytest.mark.parametrize("name", ["priority", "duration_ms", "queued_at", "name"])
def test_the_order_may_be_chosen_and_rows_without_a_value_come_last(name, api):
    for status, priority in (("completed", 1), ("pending", 3), ("queued", 2), ("failed", 9)):
        JobFactory(status=status, priority=priority)
    rows = api.get("jobs/", ordering=name).json()["results"]
    values = [row[name] for row in rows]
    known = [value for value in values if value is not None]
    nothing = [None] * (len(values) - len(known))
    assert values == sorted(known) + nothing
    rows = api.get("jobs/", ordering=f"-{name}").json()["results"]
    assert [row[name] for row in rows] == sorted(known, reverse=True) + nothing


def test_several_columns_order_one_after_the_other(api):
    for priority, name in ((1, "b"), (2, "c"), (1, "a")):
        JobFactory(priority=priority, name=name)
    assert listed(api, ordering="-priority,name") == ["c", "a", "b"]
    assert listed(api, ordering=["priority", "-name"]) == ["b", "a", "c"]


# Who sees what ------------------------------------------------------------------------------------


def test_people_see_their_own_jobs_operators_and_viewers_all():
    ada = a_person()
    own, other = JobFactory(created_by=ada), JobFactory(created_by=UserFactory())
    assert listed(Api(ada)) == [own.name]
    assert Api(ada).get("jobs/").json()["count"] == 1
    everything = names(other, own)
    assert listed(Api(an_operator())) == everything
    assert listed(Api(a_person("view_containerjob"))) == everything


def test_jobs_are_found_by_their_owner_s_name_or_id(api):
    ada = UserFactory(username="ada")
    own = JobFactory(created_by=ada)
    JobFactory()
    assert listed(api, owner="ada") == listed(api, owner=ada.pk) == [own.name]
    assert listed(api, owner="nobody") == listed(api, owner="9" * 40) == []


def test_a_username_that_looks_like_an_id_is_a_username(api):
    ada = UserFactory()
    seven = UserFactory(username=str(ada.pk))
    JobFactory(created_by=ada)
    own = JobFactory(created_by=seven)
    assert listed(api, owner=str(ada.pk)) == [own.name]


def test_naming_another_owner_tells_nothing_of_his_jobs_or_of_him():
    ada, bob = UserFactory(), UserFactory(username="bob")
    own = JobFactory(created_by=ada)
    JobFactory(created_by=bob)
    api = Api(ada)
    assert listed(api, owner=ada.username) == [own.name]
    answers = [api.get("jobs/", owner=owner).json() for owner in ("bob", "nobody", bob.pk)]
    assert answers == [{"count": 0, "next": None, "previous": None, "results": []}] * 3


@pytest.mark.parametrize("filters", [{"status": "pending"}, {"search": "job"}, {"label": "a:b"}])
def test_no_filter_shows_the_jobs_of_others(filters):
    ada = UserFactory()
    own = JobFactory(created_by=ada, labels={"a": "b"})
    JobFactory(created_by=UserFactory(), labels={"a": "b"})
    told = Api(ada).get("jobs/", **filters).json()
    assert ([row["name"] for row in told["results"]], told["count"]) == ([own.name], 1)


def test_a_parameter_is_not_repeated_without_end():
    problem(Api(a_person()).get("jobs/", label=["a:b"] * 51), 400, "invalid")
