"""What is written of a DAG."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from container_manager.exceptions import SpecError
from container_manager.models import ContainerJob
from container_manager.states import MissedRuns
from container_manager.workflows.graph import TriggerRule, instance_id
from container_manager.workflows.spec import MAX_PROBLEMS, DagSpec, read, validate

EXAMPLE = """\
name: etl_pipeline
schedule: "0 2 * * *"
timezone: Europe/Berlin
tags: {team: data}
defaults: {image: "busybox:latest", max_retries: 1}
tasks:
  extract:   {command: ["/bin/sh", "-c", "echo 42"]}
  transform: {command: ["/bin/sh", "-c", "echo got $ROWS"], depends_on: [extract], environment_from: {ROWS: extract.output}}
  load:      {command: ["/bin/true"], depends_on: [transform]}
  notify:    {command: ["/bin/true"], depends_on: [load], trigger_rule: all_done}
"""  # noqa: E501
TASK = {"image": "busybox:latest", "command": ["/bin/true"]}


def dag(tasks=None, **keys):
    return {"name": "d", "tasks": {"a": TASK} if tasks is None else tasks, **keys}


def task(**fields):
    """A DAG of `first` and `a`, which depends on it."""
    return dag({"first": TASK, "a": {**TASK, "depends_on": ["first"], **fields}})


def problems(document, source=None):
    with pytest.raises(SpecError) as refused:
        validate(document, source)
    return refused.value.problems


def same_twice(spec):
    document = json.loads(json.dumps(spec.document()))
    assert validate(document) == DagSpec.stored(document) == spec
    assert validate(document).document() == document
    return spec


# What is right


def test_the_example_of_the_contract():
    spec = same_twice(validate(read(EXAMPLE), EXAMPLE))
    assert (spec.name, spec.schedule, spec.timezone) == (
        "etl_pipeline",
        "0 2 * * *",
        "Europe/Berlin",
    )
    assert spec.tags == {"team": "data"}
    assert list(spec.tasks) == ["extract", "transform", "load", "notify"]
    transform, notify = spec.tasks["transform"], spec.tasks["notify"]
    assert transform.depends_on == ("extract",)
    assert transform.environment_from == {"ROWS": "extract.output"}
    assert transform.job == {
        "image": "busybox:latest",
        "max_retries": 1,
        "command": ["/bin/sh", "-c", "echo got $ROWS"],
    }
    assert (transform.trigger_rule, notify.trigger_rule) == ("all_success", "all_done")
    assert spec.graph().order == ("extract", "transform", "load", "notify")
    assert spec.parsed_schedule().explain() == "At 02:00 every day"


def test_what_is_not_said_has_its_usual_value():
    spec = same_twice(validate(dag()))
    assert (spec.description, spec.schedule, spec.timezone) == ("", None, "UTC")
    assert (spec.start_date, spec.end_date) == (None, None)
    assert (spec.missed_runs, spec.max_active_runs) == (MissedRuns.LATEST, 16)
    assert (spec.tags, spec.params, spec.defaults) == ({}, {}, {})
    assert spec.parsed_schedule() is None
    only = spec.tasks["a"]
    assert (only.depends_on, only.skip_exit_codes, only.array) == ((), (), None)
    assert (only.trigger_rule, only.environment_from) == (TriggerRule.ALL_SUCCESS, {})
    assert only.job == TASK


def test_null_is_as_good_as_nothing():
    keys = ("description", "schedule", "timezone", "start_date", "missed_runs", "tags", "defaults")
    assert validate(dag(**dict.fromkeys(keys))) == validate(dag())
    assert validate(dag(schedule="")) == validate(dag())
    assert validate(task(trigger_rule=None, array=None)) == validate(task())
    bare = validate(read("name: d\ndefaults: {image: busybox, command: x}\ntasks:\n  a:\n  b:\n"))
    assert list(bare.tasks) == ["a", "b"]


def test_everything_at_once_is_kept():
    spec = same_twice(
        validate(
            dag(
                {
                    "a": {**TASK, "array": 3, "labels": {"own": "1"}},
                    "b": {
                        "command": "sh -c 'exit 1'",
                        "depends_on": "a",
                        "skip_exit_codes": [99, 7, 99],
                        "trigger_rule": "one_success",
                        "environment": {"X": "own"},
                        "environment_from": {"CODES": "a.exit_code"},
                        "timeout_seconds": None,
                        "retry_policy": "aggressive",
                    },
                },
                description="All of it: {{ ds }}",
                schedule=" @daily ",
                timezone="America/New_York",
                start_date="2026-01-01",
                end_date="2026-12-31T12:00",
                missed_runs="all",
                max_active_runs=1,
                tags={"team": "data"},
                params={"DAY": "{{ ds }}"},
                defaults={
                    "image": "alpine:3",
                    "environment": {"X": "shared", "Y": "shared"},
                    "labels": {"all": "1"},
                    "timeout_seconds": 60,
                    "trigger_rule": "all_done",
                    "skip_exit_codes": [5],
                },
            )
        )
    )
    a, b = spec.tasks["a"], spec.tasks["b"]
    assert spec.schedule == "@daily"
    assert spec.start_date == datetime(2026, 1, 1, 5, tzinfo=UTC)
    assert spec.end_date == datetime(2026, 12, 31, 17, tzinfo=UTC)
    assert (a.trigger_rule, a.skip_exit_codes) == ("all_done", (5,))
    assert (b.trigger_rule, b.skip_exit_codes) == ("one_success", (99, 7))
    assert a.job["image"] == "busybox:latest"
    assert b.job["image"] == "alpine:3"
    assert a.job["labels"] == {"all": "1", "own": "1"}
    assert b.job["environment"] == {"X": "own", "Y": "shared"}
    assert b.job["command"] == ["sh", "-c", "exit 1"]
    assert (a.job["timeout_seconds"], b.job["timeout_seconds"]) == (60, None)
    assert spec.instances_of("a") == ["a[0]", "a[1]", "a[2]"]
    assert (b.instances(), spec.instances_of("b")) == ([("b", None)], ["b"])


def test_the_jobs_of_a_sound_dag_are_sound():
    spec = validate(read(EXAMPLE))
    for each in spec.tasks.values():
        ContainerJob(**each.job).clean_fields()
        ContainerJob(**each.job).clean()


def test_a_local_process_needs_no_image():
    local = {"command": ["/bin/true"], "isolation": "process"}
    assert validate(dag({"a": local})).tasks["a"].job == local
    assert validate(dag({"a": {"command": ["x"]}}, defaults={"executor": "process"}))


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-06-01", "2026-05-31T22:00"),
        ("2026-06-01T02:00", "2026-06-01T00:00"),
        ("2026-06-01 02:00:30", "2026-06-01T00:00:30"),
        ("2026-06-01T02:00Z", "2026-06-01T02:00"),
        ("2026-06-01T02:00+05:30", "2026-05-31T20:30"),
        (date(2026, 6, 1), "2026-05-31T22:00"),
        (datetime(2026, 6, 1, 2), "2026-06-01T00:00"),  # noqa: DTZ001
        (datetime(2026, 6, 1, 2, tzinfo=UTC), "2026-06-01T02:00"),
    ],
)
def test_a_date_without_zone_is_meant_on_the_clock_of_the_dag(written, moment):
    spec = same_twice(validate(dag(timezone="Europe/Berlin", start_date=written)))
    assert spec.start_date == datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert spec.start_date.tzinfo is UTC


def test_dates_may_be_written_plainly():
    text = "name: d\nstart_date: 2026-01-01\nend_date: 2026-01-02\nschedule: 0 12 * * *\n"
    text += "tasks: {a: {image: busybox, command: x}}"
    spec = validate(read(text), text)
    assert spec.start_date == datetime(2026, 1, 1, tzinfo=UTC)
    assert [slot.day for slot in spec.parsed_schedule().next(9, spec.start_date)] == [1, 2]


def test_an_end_date_is_a_day_that_belongs_to_it():
    spec = validate(dag(end_date="2026-12-31"))
    assert spec.end_date == datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)


TEMPLATES = [
    "{{ settings.SECRET_KEY }}",
    "{% load x %}",
    "${jndi:ldap://x}",
    "$(date)",
    "`id`",
    "{0.__class__}",
    "%(name)s",
    "$HOME",
    " spaces\tand\nlines ",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_looks_like_a_template_is_kept_as_it_is(template):
    document = task(command=["echo", template], environment={"X": template}, labels={"l": template})
    document |= {"description": template, "params": {"P": template}, "tags": {"t": template}}
    spec = same_twice(validate(read(json.dumps(document))))
    job = spec.tasks["a"].job
    kept = [job["command"][1], job["environment"]["X"], job["labels"]["l"]]
    assert {*kept, spec.description, spec.params["P"], spec.tags["t"]} == {template}


# What is wrong: where, and what the message says


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ([], "", "Must be a mapping"),
        (None, "", "Must be a mapping"),
        ("name", "", "Must be a mapping"),
        ({"tasks": {"a": TASK}}, "name", "Needed."),
        (dag(name=None), "name", "Needed."),
        (dag(name=""), "name", "up to 200 letters"),
        (dag(name="../x"), "name", "up to 200 letters"),
        (dag(name="x" * 201), "name", "up to 200 letters"),
        (dag(name=7), "name", "up to 200 letters"),
        (dag(name="x\n"), "name", "up to 200 letters"),
        (dag(description=["x"]), "description", "Must be a string."),
        (dag(description="\0"), "description", "NUL"),
        (dag(description="x" * 10_001), "description", "longer than 10000"),
        (dag(shedule="@daily"), "shedule", "Unknown key. Did you mean 'schedule'? There are"),
        (dag(**{"\ud800": 1}), "'\\ud800'", "Unknown key."),
        ({**dag(), 7: 1}, "7", "A key must be a string."),
        # when
        (dag(schedule="61 * * * *"), "schedule", "Bad minute"),
        (dag(schedule="* * * * * *"), "schedule", "6 fields"),
        (dag(schedule="0 0 31 2 *"), "schedule", "never fires"),
        (dag(schedule=5), "schedule", "Must be a string."),
        (
            dag(schedule="@yearly", start_date="2026-02-01", end_date="2026-03-01"),
            "schedule",
            "never",
        ),
        (dag(timezone="Mars/Phobos"), "timezone", "There is no time zone 'Mars/Phobos'"),
        (dag(timezone=2), "timezone", "Must be a string."),
        (dag(start_date="2026-02-30"), "start_date", "Must be a date or time such as"),
        (dag(start_date=20260101), "start_date", "Must be a date or time such as"),
        (dag(start_date="1969-12-31"), "start_date", "Must be from 1970 to 2199."),
        (dag(start_date="0001-01-01T00:00+14:00"), "start_date", "Must be from 1970 to 2199."),
        (dag(end_date="9999-12-31T23:00-14:00"), "end_date", "Must be from 1970 to 2199."),
        (dag(start_date="2026-02-01", end_date="2026-01-31"), "end_date", "before the start"),
        (dag(missed_runs="some"), "missed_runs", "'some' is not one of latest, all, none."),
        (dag(max_active_runs=0), "max_active_runs", "from 1 to 1000"),
        (dag(max_active_runs=True), "max_active_runs", "from 1 to 1000"),
        (dag(max_active_runs="5"), "max_active_runs", "from 1 to 1000"),
        (dag(tags=["x"]), "tags", "Must be an object of strings."),
        (dag(tags={"a b": "x"}), "tags", "not a label name"),
        (dag(params={"DAY": 1}), "params", "Must be a string."),
        (dag(params={"CM_DAY": "1"}), "params", "reserved"),
        (dag(params={"A-B": "1"}), "params", "not a variable name"),
        # tasks
        ({"name": "d"}, "tasks", "at least one task"),
        (dag({}), "tasks", "at least one task"),
        (dag([TASK]), "tasks", "at least one task"),
        (dag({"a.b": TASK}), "tasks.a.b", "up to 200 letters"),
        (dag({"a[0]": TASK}), "tasks.a[0]", "up to 200 letters"),
        (dag({"": TASK}), "tasks.", "up to 200 letters"),
        (dag({7: TASK}), "tasks.7", "up to 200 letters"),
        (dag({"a": "true"}), "tasks.a", "Must be a mapping."),
        (
            dag({f"t{n}": TASK for n in range(10_001)}),
            "tasks",
            "Must not be more than 10000 tasks; there are 10001.",
        ),
        (task(array=10_000), "tasks", "10000 tasks; with their arrays there are 10001."),
        (task(array=0), "tasks.a.array", "from 1 to 10000"),
        (task(array=10_001), "tasks.a.array", "from 1 to 10000"),
        (task(array=2.0), "tasks.a.array", "from 1 to 10000"),
        (task(imgae="x"), "tasks.a.imgae", "Unknown key. Did you mean 'image'?"),
        (task(name="x"), "tasks.a.name", "Unknown key."),
        (task(created_by=1), "tasks.a.created_by", "Unknown key."),
        (task(status="completed"), "tasks.a.status", "Unknown key."),
        (task(scheduled_for="2026-01-01"), "tasks.a.scheduled_for", "Unknown key."),
        (dag(defaults={"depends_on": ["a"]}), "defaults.depends_on", "Unknown key."),
        (dag(defaults=["x"]), "defaults", "Must be a mapping."),
        # what depends on what
        (
            task(depends_on=["fist"]),
            "tasks.a.depends_on[0]",
            "no task 'fist'. Did you mean 'first'?",
        ),
        (task(depends_on=["first", "b"]), "tasks.a.depends_on[1]", "no task 'b'."),
        (task(depends_on=["first", "first"]), "tasks.a.depends_on[1]", "named twice"),
        (task(depends_on="a"), "tasks.a.depends_on[0]", "depend on itself"),
        (task(depends_on=[1]), "tasks.a.depends_on[0]", "Must be a task id."),
        (task(depends_on={"first": 1}), "tasks.a.depends_on", "Must be a list of task ids."),
        (
            dag({"x": {**TASK, "depends_on": "y"}, "y": {**TASK, "depends_on": "x"}, "z": TASK}),
            "tasks.x.depends_on",
            "A cycle: x -> y -> x.",
        ),
        (task(trigger_rule="sometimes"), "tasks.a.trigger_rule", ", ".join(TriggerRule.values)),
        (task(trigger_rule=["always"]), "tasks.a.trigger_rule", "Must be a string."),
        (dag(defaults={"trigger_rule": "x"}), "defaults.trigger_rule", "'x' is not one of"),
        (task(skip_exit_codes=99), "tasks.a.skip_exit_codes", "Must be a list of whole numbers"),
        (task(skip_exit_codes=[99, 0]), "tasks.a.skip_exit_codes[1]", "from 1 to 255"),
        (task(skip_exit_codes=[True]), "tasks.a.skip_exit_codes[0]", "from 1 to 255"),
        (task(environment_from=["x"]), "tasks.a.environment_from", "Must be a mapping of variable"),
        (task(environment_from={"X": 1}), "tasks.a.environment_from.X", "Must be `task.output`"),
        (task(environment_from={"X": "first"}), "tasks.a.environment_from.X", "not `task.output`"),
        (task(environment_from={"X": "b.output"}), "tasks.a.environment_from.X", "in depends_on"),
        (task(environment_from={"CM_X": "first.output"}), "tasks.a.environment_from", "reserved"),
        (
            task(environment_from={"X": "first.output"}, environment={"X": "1"}),
            "tasks.a.environment_from.X",
            "in environment, too",
        ),
        # fields of a job
        (task(image=""), "tasks.a.image", "Needed, unless executor or isolation is `process`."),
        (task(image="a b"), "tasks.a.image", "not an image reference"),
        (task(image=None), "tasks.a.image", "Must not be null."),
        (dag({"a": {"image": "busybox"}}), "tasks.a.command", "Needed, here or in defaults."),
        (task(command=[]), "tasks.a.command", "cannot be blank"),
        (task(command=[""]), "tasks.a.command", "must not be empty"),
        (task(command="sh -c 'x"), "tasks.a.command", "Cannot be split as a shell would"),
        (task(command=["x", 1]), "tasks.a.command", "Must be a string."),
        (task(environment={"CM_X": "1"}), "tasks.a.environment", "reserved"),
        (task(environment={"PORT": 8080}), "tasks.a.environment", "Must be a string."),
        (task(labels=["x"]), "tasks.a.labels", "Must be an object of strings."),
        (task(priority=101), "tasks.a.priority", "from 0 to 100"),
        (task(image=5), "tasks.a.image", "Must be a string."),
        (task(queue=True), "tasks.a.queue", "Must be a string."),
        (task(max_retries="many"), "tasks.a.max_retries", "Must be a number, not text."),
        (task(max_retries="3"), "tasks.a.max_retries", "Must be a number, not text."),
        (task(cpu_limit="0.5"), "tasks.a.cpu_limit", "Must be a number, not text."),
        (task(max_retries=True), "tasks.a.max_retries", "whole number"),
        (task(cpu_limit=0), "tasks.a.cpu_limit", "from 0.01"),
        (task(isolation="vault"), "tasks.a.isolation", "'vault' is not one of"),
        (task(executor="nowhere"), "tasks.a.executor", "not a known executor"),
        (task(network="host"), "tasks.a.network", "not allowed"),
        (task(retry_policy="nope"), "tasks.a.retry_policy", "no policy 'nope'"),
        (dag(defaults={"image": "a b"}), "defaults.image", "not an image reference"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_a_mistake_is_named_with_its_place(document, path, message):
    (problem,) = problems(document)
    assert problem.path == path
    assert message in problem.message


def test_together_the_environments_may_be_too_large():
    half = {f"V{n}": "x" for n in range(600)}
    (problem,) = problems(
        dag(
            {"a": {**TASK, "environment": {f"O{n}": "" for n in range(600)}}},
            defaults={"environment": half},
        )
    )
    assert (problem.path, "more than 1000" in problem.message) == ("tasks.a.environment", True)
    assert validate(dag(defaults={"environment": half}))


def test_a_parameter_may_be_called_like_a_variable_of_a_task():
    document = {**task(environment={"DAY": "1"}), "params": {"DAY": "2"}}
    assert validate(document).params == {"DAY": "2"}


def test_all_mistakes_are_told_at_once_with_their_lines():
    text = """\
name: etl
schedule: 99 * * * *
defaults: {image: busybox, priority: 500}
tasks:
  a:
    command: x
    depends_on: [b,
      c]
  b:
    comand: x
"""
    found = problems(read(text), text)
    assert [(each.line, each.path) for each in found] == [
        (2, "schedule"),
        (3, "defaults.priority"),
        (8, "tasks.a.depends_on[1]"),
        (10, "tasks.b.comand"),
    ]
    assert str(found[0]).startswith("line 2: schedule: ")


def test_what_is_missing_has_the_line_of_what_it_is_missing_from():
    text = '{"tasks": {\n "a": {"image": "busybox"}}}'
    assert [(each.line, each.path) for each in problems(read(text), text)] == [
        (None, "name"),
        (2, "tasks.a.command"),
    ]


def test_no_more_mistakes_are_told_than_somebody_reads():
    many = dag({f"t{n}": {**TASK, "nope": 1} for n in range(500)})
    assert len(problems(many)) == MAX_PROBLEMS


def test_one_mistake_in_the_defaults_is_one_mistake():
    tasks = {f"t{n}": {"command": "x"} for n in range(50)}
    assert [each.path for each in problems(dag(tasks, defaults={"image": "a b"}))] == [
        "defaults.image"
    ]


def test_a_long_cycle_is_told_in_short():
    ring = {f"t{n}": {**TASK, "depends_on": [f"t{(n + 1) % 3_000}"]} for n in range(3_000)}
    (problem,) = problems(dag(ring))
    assert "(3000 tasks)" in problem.message
    assert len(problem.message) < 200


def test_what_is_nested_too_deeply_is_refused():
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    (problem,) = problems(dag(description=deep))
    assert problem.message == "Is nested too deeply."


# Large ones


def test_ten_thousand_tasks_look_at_equal_fields_once(monkeypatch):
    looked = []
    real = ContainerJob.clean_fields
    monkeypatch.setattr(
        ContainerJob,
        "clean_fields",
        lambda *args, **kwargs: looked.append(1) or real(*args, **kwargs),
    )
    spec = validate(dag({f"t{n}": TASK for n in range(10_000)}))
    assert len(spec.tasks) == 10_000
    assert len(looked) == len(TASK)


def test_a_chain_of_five_thousand_is_read():
    chain = {f"t{n}": {**TASK, "depends_on": [f"t{n - 1}"] if n else []} for n in range(5_000)}
    assert validate(dag(chain)).graph().order == tuple(chain)


def test_an_array_behind_an_array_is_one_edge():
    spec = validate(
        dag({"a": {**TASK, "array": 5_000}, "b": {**TASK, "array": 5_000, "depends_on": ["a"]}})
    )
    assert spec.graph().upstream == {"a": (), "b": ("a",)}
    assert spec.instances_of("b")[-1] == instance_id("b", 4_999)


# Whatever is written

KEYS = st.sampled_from(
    [
        *(
            "name",
            "schedule",
            "start_date",
            "tasks",
            "defaults",
            "params",
            "tags",
            "a",
            "b",
            "image",
        ),
        *("command", "depends_on", "trigger_rule", "array", "environment_from", "retry_policy", ""),
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["a", "@daily", "a.output", "busybox", "2026-01-01"]),
    st.dates(),
    st.just(timedelta(1)),
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(DOCUMENTS, st.dictionaries(KEYS, DOCUMENTS, max_size=6))
def test_whatever_is_written_is_a_dag_or_refused(anything, fields):
    for document in (anything, dag(**fields), task(**fields)):
        try:
            same_twice(validate(document))
        except SpecError as error:
            assert all(problem.message for problem in error.problems)  # noqa: PT017
