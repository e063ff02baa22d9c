"""The form of a new job, and of what may still change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from container_manager import conf, lifecycle
from container_manager.models import ContainerJob, StateHistory
from container_manager.states import JobStatus
from tests.admin.conftest import page_of, url
from tests.factories import JobFactory
from tests.support.fleet import LOCAL, engine, worker_row

Job = Callable[..., ContainerJob]

LEAST = {"isolation": "auto", "pull_policy": "missing"}
"""What a browser sends of the fields that always have a value."""


def submit(client: Client, query: str = "", **said: Any) -> Any:
    given = {"image": "busybox", "command": "echo hello", **LEAST, **said}
    return client.post(url("add") + query, given)


def test_a_job_is_submitted_and_queued(operator: Client) -> None:
    answer = submit(
        operator,
        name="mine",
        command="sh -c 'echo $HOME | wc -c'",
        queue="slow",
        priority="70",
        environment="A=1\nB=x=y",
        labels='{"team": "data"}',
        timeout_seconds="60",
        scheduled_for="2030-01-31T08:00",
        queue_now="on",
    )
    job = ContainerJob.objects.get()
    assert answer["Location"] == page_of(job)
    assert job.command == ["sh", "-c", "echo $HOME | wc -c"]
    assert (job.name, job.queue, job.priority, job.status) == ("mine", "slow", 70, "queued")
    assert (job.environment, job.labels) == ({"A": "1", "B": "x=y"}, {"team": "data"})
    assert (job.timeout_seconds, job.max_retries, job.start_timeout_seconds) == (60, 3, 600)
    assert job.scheduled_for.isoformat() == "2030-01-31T08:00:00+00:00"
    assert job.created_by == operator.person  # type: ignore[attr-defined]
    assert {row.actor for row in StateHistory.objects.of(job)} == {"admin:olga"}


def test_without_queue_now_it_stays_pending(operator: Client) -> None:
    submit(operator)
    assert ContainerJob.objects.get().status == JobStatus.PENDING


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", "-v", "is not an image reference"),
        ("image", "", "Needed, unless"),
        ("command", "", "This field is required"),
        ("command", "echo 'open", "Cannot be split"),
        ("name", "a\x00b", "Null characters"),
        ("name", "x" * 256, "at most 255 characters"),
        ("queue", "a b", "is not a queue name"),
        ("priority", "101", "Must be from 0 to 100"),
        ("priority", "high", "Enter a whole number"),
        ("cpu_limit", "nan", "Enter a number"),
        ("cpu_limit", "1e308", "Must be from 0.01"),
        ("memory_limit_mb", "1", "Must be from 6"),
        ("timeout_seconds", "0", "Must be from 1"),
        ("timeout_seconds", "9" * 30, "Must"),
        ("environment", "nonsense", "is not NAME=value"),
        ("environment", "A=1\nA=2", "is given twice"),
        ("environment", "CM_A=1", "are reserved"),
        ("environment", '{"A": 1}', "Must be a string"),
        ("environment", "[1]", "Must be an object of strings"),
        ("environment", "{", "Not valid JSON"),
        ("labels", "-=1", "is not a label name"),
        ("scheduled_for", "2026-02-30T00:00", "Enter a valid date"),
        ("executor", "nonsense", "Select a valid choice"),
        ("isolation", "nonsense", "Select a valid choice"),
        ("network", "host", "is not allowed"),
        ("working_dir", "relative", "Must be an absolute path"),
        ("retry_policy", "nonsense", "nonsense"),
        ("retry_policy", "{", "Not valid JSON"),
        ("max_retries", "1001", "Must be from 0 to 1000"),
    ],
)
def test_bad_input_is_told_at_its_field_and_nothing_is_written(
    operator: Client, field: str, value: str, message: str
) -> None:
    answer = submit(operator, **{field: value})
    assert answer.status_code == 200
    assert message in " ".join(answer.context["form"].errors[field])
    assert "Please correct what is marked" in answer.content.decode()
    assert not ContainerJob.objects.exists()


@pytest.mark.parametrize("field", ["environment", "labels", "retry_policy"])
@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
def test_json_of_any_depth_is_told_at_its_field(operator: Client, field: str, depth: int) -> None:
    for value in ('{"a":' + "[" * depth, '{"a":' + "[" * depth + "]" * depth + "}"):
        answer = submit(operator, **{field: value})
        assert answer.status_code == 200
        assert answer.context["form"].errors[field]
    assert not ContainerJob.objects.exists()


def test_a_form_that_is_sent_twice_makes_one_job(operator: Client) -> None:
    mark = operator.get(url("add")).context["form"]["once"].value()
    first, second = submit(operator, once=mark), submit(operator, once=mark)
    one = ContainerJob.objects.get()
    assert first["Location"] == second["Location"] == page_of(one)
    assert "This form was sent before" in operator.get(page_of(one)).content.decode()


def test_a_form_makes_another_job_when_it_says_something_else(operator: Client) -> None:
    mark = operator.get(url("add")).context["form"]["once"].value()
    submit(operator, once=mark, priority="101")
    submit(operator, once=mark, name="first")
    submit(operator, once=mark, name="second")
    assert {job.name for job in ContainerJob.objects.all()} == {"first", "second"}


def test_each_form_has_a_mark_of_its_own(operator: Client, job: Job) -> None:
    one = job()
    address = f"{url('add')}?like={one.pk}"
    marks = {operator.get(address).context["form"]["once"].value() for _ in range(2)}
    assert len(marks) == 2
    for mark in marks:
        submit(operator, once=mark)
    assert ContainerJob.objects.count() == 3


def test_what_was_typed_is_still_there_after_a_mistake(operator: Client) -> None:
    page = submit(operator, name="typed", memory_limit_mb="1").content.decode()
    assert 'value="typed"' in page
    assert '<details class="cm-card" open>' in page


def test_who_has_submitted_nothing_yet_is_proposed_an_example(operator: Client, job: Job) -> None:
    worker_row()
    other = job()
    example = operator.get(url("add")).context["form"].initial
    assert example["executor"] == "process"
    given = {**LEAST, **{name: str(value) for name, value in example.items()}}
    given["command"] = operator.get(url("add")).context["form"]["command"].value()
    assert operator.post(url("add"), {**given, "isolation": "process"}).status_code == 302
    assert ContainerJob.objects.exclude(pk=other.pk).get().command[:2] == ["sh", "-c"]
    assert operator.get(url("add")).context["form"].initial == {}


def test_the_example_fits_what_is_configured_where_no_worker_lives(
    operator: Client, configured: Any
) -> None:
    assert operator.get(url("add")).context["form"].initial["image"] == "busybox:latest"
    configured(EXECUTORS={"process": conf.settings.EXECUTORS["process"]})
    assert operator.get(url("add")).context["form"].initial["executor"] == "process"


def test_the_example_is_a_container_where_an_engine_answers(operator: Client) -> None:
    worker_row(offers={**LOCAL, "docker": engine("container")})
    assert operator.get(url("add")).context["form"].initial["image"] == "busybox:latest"


def test_submit_again_begins_with_the_same_values(operator: Client, job: Job) -> None:
    one = job(
        name="first",
        status=JobStatus.FAILED,
        command=["sh", "-c", "echo 'a b'"],
        environment={"TOKEN": "geheim", "MODE": "x\ny"},
        labels={"team": "data"},
        memory_limit_mb=64,
        queue="slow",
        retry_policy={"strategy": "fixed"},
    )
    form = operator.get(url("add"), {"like": one.pk}).context["form"]
    said = {name: form[name].value() for name in form.fields if form[name].value() is not None}
    said = {name: value for name, value in said.items() if value != ""}
    assert "geheim" not in str(said)
    answer = operator.post(f"{url('add')}?like={one.pk}", {**said, "queue_now": "on"})
    assert answer.status_code == 302, answer.context["form"].errors
    new = ContainerJob.objects.exclude(pk=one.pk).get()
    for field in ("name", "command", "environment", "labels", "memory_limit_mb", "queue"):
        assert getattr(new, field) == getattr(one, field)
    assert (new.retry_policy, new.status) == ({"strategy": "fixed"}, JobStatus.QUEUED)


def test_a_hidden_value_without_a_source_is_asked_for(operator: Client) -> None:
    answer = submit(operator, environment="TOKEN=***")
    assert "give the value itself" in str(answer.context["form"].errors["environment"])


@pytest.mark.parametrize("like", ["nonsense", "00000000-0000-7000-8000-000000000000"])
def test_an_unknown_job_to_be_like_is_told(operator: Client, db: None, like: str) -> None:
    assert operator.get(url("add"), {"like": like}).status_code == 404


# Changing -----------------------------------------------------------------------------------------


def typed(client: Client, job: ContainerJob) -> dict[str, Any]:
    """What a browser would send of the edit form as it stands."""
    form = client.get(url("edit", job.pk)).context["form"]
    values = {name: form[name].value() for name in form.fields}
    return {name: value for name, value in values.items() if value is not None}


def test_only_what_the_state_allows_can_be_changed(operator: Client, job: Job) -> None:
    for status in JobStatus:
        one = job(status=status)
        form = operator.get(url("edit", one.pk)).context["form"]
        assert {*form.fields} - {"revision"} == lifecycle.changeable(status)


def test_a_change_is_saved_and_the_rest_stays(operator: Client, job: Job) -> None:
    one = job(environment={"TOKEN": "geheim"}, priority=20, cpu_limit=0.5)
    said = typed(operator, one)
    said |= {"priority": "30", "environment": "TOKEN=***\nMODE=fast"}
    assert operator.post(url("edit", one.pk), said).status_code == 302
    now = ContainerJob.objects.get()
    assert (now.priority, now.cpu_limit, now.command) == (30, 0.5, one.command)
    assert now.environment == {"TOKEN": "geheim", "MODE": "fast"}
    assert now.version == one.version


def test_saving_without_a_change_writes_nothing(operator: Client, job: Job) -> None:
    one = job(queue="slow")
    answer = operator.post(url("edit", one.pk), typed(operator, one), follow=True)
    assert [str(said) for said in answer.context["messages"]] == ["Nothing was changed."]
    assert ContainerJob.objects.get().updated_at == one.updated_at


def test_two_who_edit_at_once_cannot_overwrite_each_other(operator: Client, job: Job) -> None:
    one = job(name="before")
    first, second = typed(operator, one), typed(operator, one)
    operator.post(url("edit", one.pk), {**first, "name": "first"})
    late = operator.post(url("edit", one.pk), {**second, "name": "second"})
    assert late.status_code == 200
    assert "It has changed meanwhile" in late.content.decode()
    assert ContainerJob.objects.get().name == "first"


def test_a_change_of_a_job_that_starts_meanwhile_is_not_thrown_away_silently(
    operator: Client, job: Job
) -> None:
    one = job(status=JobStatus.QUEUED)
    said = {**typed(operator, one), "command": "echo changed"}
    lifecycle.move(one.pk, JobStatus.RUNNING)
    late = operator.post(url("edit", one.pk), said)
    assert late.status_code == 200
    page = late.content.decode()
    assert "It has changed meanwhile; nothing was saved." in page
    assert f'href="{url("edit", one.pk)}"' in page
    assert "Please correct what is marked" not in page
    assert ContainerJob.objects.get().command == one.command


def test_a_save_without_a_change_of_a_job_that_moved_is_told_too(
    operator: Client, job: Job
) -> None:
    one = job()
    said = typed(operator, one)
    lifecycle.enqueue([one.pk])
    assert "It has changed meanwhile" in operator.post(url("edit", one.pk), said).content.decode()


@pytest.mark.parametrize("status", JobStatus)
def test_what_cannot_change_any_more_is_said_only_where_that_is_so(
    operator: Client, job: Job, status: JobStatus
) -> None:
    page = operator.get(url("edit", job(status=status).pk)).content.decode()
    assert ("cannot change any more" in page) == (status not in lifecycle.BEFORE_A_START)


def test_bad_input_of_a_change_is_told_at_its_field(operator: Client, job: Job) -> None:
    one = job()
    answer = operator.post(url("edit", one.pk), {**typed(operator, one), "priority": "101"})
    assert "Must be from 0 to 100" in str(answer.context["form"].errors["priority"])


def test_a_running_job_can_only_be_renamed(operator: Client) -> None:
    one = JobFactory(status=JobStatus.RUNNING, name="before")
    said = {**typed(operator, one), "name": "after", "command": "rm -rf /"}
    assert operator.post(url("edit", one.pk), said).status_code == 302
    now = ContainerJob.objects.get()
    assert (now.name, now.command) == ("after", one.command)
