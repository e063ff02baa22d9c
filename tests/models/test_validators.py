"""What full_clean() lets through. What it refuses must never reach an engine or a shell."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from container_manager.models import ContainerJob, Queue, validators
from container_manager.states import Isolation
from tests.factories import JobFactory

pytestmark = pytest.mark.django_db

DIGEST = "sha256:" + "a" * 64


def problems(**fields):
    """The fields that full_clean() complains of, with what it says."""
    try:
        JobFactory.build(**fields).full_clean()
    except ValidationError as error:
        return error.message_dict
    return {}


def test_an_ordinary_job_is_valid():
    assert problems() == {}


@pytest.mark.parametrize(
    "image",
    [
        "alpine",
        "busybox:latest",
        "library/busybox:1.36.1-musl",
        "ghcr.io/some-org/some_app.x/y:V1.2_3",
        "localhost:5000/a/b",
        "registry.example:443/team/app@" + DIGEST,
        "alpine:3.20@" + DIGEST,
        "a--b__c/d",
        "x:" + "t" * 128,
    ],
)
def test_an_image_reference_is_valid(image):
    assert problems(image=image) == {}


@pytest.mark.parametrize(
    "image",
    [
        "-v",
        "--privileged",
        "alpine latest",
        " alpine",
        "alpine ",
        "alpine\n",
        "alpine;rm -rf /",
        "$(id)",
        "`id`",
        "../etc",
        "/alpine",
        "alpine/",
        "Alpine",
        "library/Alpine",
        "a" * 256,
        "alpine:",
        "alpine:-x",
        "alpine:" + "t" * 129,
        "alpine@sha256:abc",
        "alpine@md5:" + "a" * 64,
        "alpine@" + DIGEST.upper(),
        "alpine:1:2",
        "http://alpine",
        "host:999999/alpine",
        "a___b",
        "ünïcode",
        "alp\x00ine",
        "alp\ud800ine",
    ],
)
def test_what_is_no_image_reference_is_refused(image):
    assert list(problems(image=image)) == ["image"]


def test_an_image_is_needed_unless_the_job_is_a_local_process(settings):
    settings.CONTAINER_MANAGER = {"PROCESS_EXECUTOR": True}
    assert list(problems(image="")) == ["image"]
    assert problems(image="", executor="process") == {}
    assert problems(image="", isolation=Isolation.PROCESS) == {}


@pytest.mark.parametrize(
    ("command", "read"),
    [
        (["/bin/true"], ["/bin/true"]),
        (["sh", "-c", "echo $(id); rm -rf /"], ["sh", "-c", "echo $(id); rm -rf /"]),
        (["x", ""], ["x", ""]),
        ("echo hello", ["echo", "hello"]),
        ("sh -c 'a b' \"c d\" e\\ f", ["sh", "-c", "a b", "c d", "e f"]),
        ("echo '$HOME' {{ x }} %s", ["echo", "$HOME", "{{", "x", "}}", "%s"]),
        ("echo ü \U0001f600", ["echo", "ü", "\U0001f600"]),
    ],
)
def test_a_command_is_a_list_or_a_text_split_as_a_shell_would(command, read):
    job = JobFactory.build(command=command)
    job.full_clean()
    assert job.command == read


@pytest.mark.parametrize(
    "command",
    [
        [],
        "",
        "   ",
        None,
        7,
        {},
        {"a": "b"},
        [""],
        ["", "x"],
        [1],
        ["a", None],
        ["a", ["b"]],
        ["a", True],
        ["a\x00"],
        "a\x00",
        ["a\ud800"],
        "a \udfff",
        "echo 'open",
        'echo "open',
        "echo \\",
        ["x" * (validators.MAX_COMMAND_BYTES + 1)],
        ["ü" * (validators.MAX_COMMAND_BYTES // 2 + 1)],
        ["x"] * (validators.MAX_COMMAND_BYTES // 2 + 1),
    ],
    ids=lambda command: repr(command)[:30],
)
def test_what_is_no_command_is_refused(command):
    assert list(problems(command=command)) == ["command"]


def test_a_command_as_long_as_allowed_is_valid():
    assert problems(command=["x" * (validators.MAX_COMMAND_BYTES - 1)]) == {}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"A": ""},
        {"_x1": "any = value\nof lines"},
        {"http_proxy": "x", "PATH": "/bin", "LD_PRELOAD": "x"},
        {f"V{n}": "x" for n in range(validators.MAX_ENVIRONMENT_VARIABLES)},
    ],
    ids=lambda environment: repr(environment)[:30],
)
def test_an_environment_is_an_object_of_strings(environment):
    assert problems(environment=environment) == {}


@pytest.mark.parametrize(
    "environment",
    [
        [],
        "A=1",
        7,
        {"": "x"},
        {"A B": "x"},
        {"A=B": "x"},
        {"A-B": "x"},
        {"1A": "x"},
        {"Ä": "x"},
        {"A\n": "x"},
        {"A\x00": "x"},
        {"A\ud800": "x"},
        {"A": 1},
        {"A": None},
        {"A": ["x"]},
        {"A": "\x00"},
        {"A": "\ud800"},
        {"CM_JOB_ID": "x"},
        {f"V{n}": "x" for n in range(validators.MAX_ENVIRONMENT_VARIABLES + 1)},
        {"A": "x" * validators.MAX_ENVIRONMENT_BYTES},
    ],
    ids=lambda environment: repr(environment)[:30],
)
def test_what_is_no_environment_is_refused(environment):
    if environment == []:
        assert problems(environment={"A": []}) != {}
        return
    assert list(problems(environment=environment)) == ["environment"]


@pytest.mark.parametrize("labels", [{}, {"team": ""}, {"a.b/c-d_e1": "x y\nz"}, {"a" * 128: "x"}])
def test_labels_are_an_object_of_strings(labels):
    assert problems(labels=labels) == {}


@pytest.mark.parametrize(
    "labels",
    [
        ["a"],
        "a",
        {"": "x"},
        {"a b": "x"},
        {"-a": "x"},
        {"a.": "x"},
        {"a" * 129: "x"},
        {"a": 1},
        {"a": None},
        {"a": {"b": "c"}},
        {"a\x00": "x"},
        {"a": "\x00"},
        {"a": "\udc00"},
    ],
    ids=lambda labels: repr(labels)[:30],
)
def test_what_is_no_label_is_refused(labels):
    assert list(problems(labels=labels)) == ["labels"]


RANGES = {
    "cpu_limit": (0.01, validators.MAX_CPU),
    "memory_limit_mb": (6, validators.MAX_MEMORY_MB),
    "pids_limit": (1, validators.MAX_PIDS),
    "timeout_seconds": (1, validators.MAX_SECONDS),
    "start_timeout_seconds": (1, validators.MAX_SECONDS),
    "queue_timeout_seconds": (1, validators.MAX_SECONDS),
    "stop_grace_seconds": (0, 3600),
    "priority": (0, 100),
    "max_retries": (0, 1000),
}


@pytest.mark.parametrize("limit", RANGES)
def test_a_limit_is_valid_from_its_lowest_to_its_highest_value(limit):
    low, high = RANGES[limit]
    assert [value for value in (low, high, str(high)) if problems(**{limit: value})] == []
    for value in (low - 1, high + 1):
        assert list(problems(**{limit: value})) == [limit]


@pytest.mark.parametrize(
    "value",
    [
        *(-1, True, False, "", "x", "1g", [], {}, 10**400, -(10**400)),
        *(float("nan"), float("inf"), -float("inf"), 1e308, "nan", "inf", "1e999"),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_what_is_no_number_in_range_is_refused_for_every_limit(value):
    assert set(problems(**dict.fromkeys(RANGES, value))) == set(RANGES)


@pytest.mark.parametrize("limit", [limit for limit in RANGES if limit != "cpu_limit"])
def test_a_whole_number_is_not_cut_off(limit):
    assert list(problems(**{limit: 10.5})) == [limit]
    assert problems(**{limit: 10.0}) == {}


TEXTS = [
    field.name
    for field in ContainerJob._meta.concrete_fields
    if field.get_internal_type() in ("CharField", "TextField")
]


@pytest.mark.parametrize("character", [0, 0xD800, 0xDFFF], ids=hex)
def test_no_text_holds_what_no_database_can_keep(character):
    text = f"a{chr(character)}b"
    assert list(problems(**dict.fromkeys(TEXTS, text))) == TEXTS


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("name", ["", "a job", "ü \U0001f600 <b>"], ["   ", "a\nb", "a\rb", "x" * 256]),
        (
            "queue",
            ["default", "a.b-c_d", "9"],
            ["", " ", "a b", "-a", "a/b", "ä", "a\n", "x" * 101],
        ),
        ("working_dir", ["", "/", "/srv/app"], ["srv", "./x", "../x", "~", "/x\x00"]),
        ("executor", ["", "docker"], ["nobody", "Docker", "docker ", "container_manager.x.Y"]),
        ("isolation", list(Isolation), ["", "none", "runc", "Container"]),
        ("pull_policy", ["missing", "never", "always"], ["", "Always", "sometimes"]),
        ("network", ["none", "bridge", "my-net"], ["", "host", "container:x", "a b", "-x"]),
        ("status", ["pending"], ["", "x", "Pending"]),
    ],
)
def test_words_and_names(field, good, bad):
    assert [value for value in good if problems(**{field: value})] == []
    assert [value for value in bad if list(problems(**{field: value})) != [field]] == []


@pytest.mark.parametrize(
    "policy", [{}, "default", "aggressive", "conservative", "high_priority", "mine", {"jitter": 0}]
)
def test_a_retry_policy_is_a_name_or_an_object(policy, settings):
    settings.CONTAINER_MANAGER = {"RETRY_POLICIES": {"mine": {"base_seconds": 1}}}
    assert problems(retry_policy=policy) == {}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("nobody", "no policy 'nobody'"),
        (7, "must be the name of a policy or an object"),
        ({"strategy": "x"}, "strategy: 'x' is not one of"),
        ({"rules": [{"action": "no"}]}, "rules[0].action"),
        ({"base_seconds": 10**400}, "base_seconds: must be between"),
    ],
)
def test_a_wrong_retry_policy_is_refused_with_its_place(policy, said):
    assert said in problems(retry_policy=policy)["retry_policy"][0]


def test_all_mistakes_are_told_at_once():
    found = problems(image="-v", command="'", priority=101, environment=7, labels={"": ""})
    assert set(found) == {"image", "command", "priority", "environment", "labels"}


def test_excluded_fields_are_not_looked_at():
    job = JobFactory.build(command="'", name="\x00", priority=True)
    job.clean_fields(exclude=["command", "name", "priority"])
    assert job.command == "'"


@pytest.mark.parametrize(
    "text", ["{{ settings.SECRET_KEY }}", "{% load x %}", "{0.__class__}", "${jndi:x}"]
)
def test_a_template_in_a_value_is_only_text(text):
    job = JobFactory(name=text, environment={"A": text}, command=["echo", text])
    job.refresh_from_db()
    assert (job.name, job.environment["A"], job.command[1]) == (text, text, text)


def test_a_queue_row_has_a_name_that_a_job_can_give():
    Queue(name="batch").full_clean()
    for name in ("", "a b", "-x", "\x00"):
        with pytest.raises(ValidationError):
            Queue(name=name).full_clean()


def test_ranges_are_equal_when_their_ends_are():
    assert validators.InRange(1, 2) == validators.InRange(1, 2) != validators.InRange(1, 3)
    assert len({validators.InRange(1, 2), validators.InRange(1, 2)}) == 1
