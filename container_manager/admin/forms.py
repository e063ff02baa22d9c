"""The form of a new job, and of what may still change of one that is there.

It only reads what was typed; what a field may hold is for `lifecycle` to say, as for every door.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError

from container_manager import conf, retries
from container_manager.lifecycle import SUBMITTABLE
from container_manager.models import ContainerJob, validators
from container_manager.states import Isolation, PullPolicy


class Lines(forms.CharField):
    """An object of strings, as lines `NAME=value` or as JSON."""

    widget = forms.Textarea

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"required": False, "strip": False, **options})
        self.widget.attrs.update(rows=4, spellcheck="false")

    def to_python(self, value: Any) -> Any:
        text = (super().to_python(value) or "").replace("\r\n", "\n")
        return _object(text) if text.lstrip().startswith(("{", "[")) else _pairs(text)

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        plain = all("\n" not in str(text) for text in value.values())
        if plain:
            return "\n".join(f"{name}={text}" for name, text in value.items())
        return json.dumps(value, indent=1)


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValidationError(f"Not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValidationError("Not valid JSON: nested too deeply") from error


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.split("\n"):
        name, is_pair, value = line.partition("=")
        if not line.strip():
            continue
        if not is_pair:
            raise ValidationError(f"{line[:80]!r} is not NAME=value.")
        if name.strip() in found:
            raise ValidationError(f"{name.strip()[:80]!r} is given twice.")
        found[name.strip()] = value
    return found


class Command(forms.CharField):
    """A list of strings, written as one would in a shell."""

    def __init__(self, **options: Any) -> None:
        widget = forms.Textarea(attrs={"rows": 2, "spellcheck": "false"})
        super().__init__(widget=widget, strip=False, **options)

    def to_python(self, value: Any) -> Any:
        return validators.split_command(super().to_python(value))

    def prepare_value(self, value: Any) -> Any:
        return shlex.join(map(str, value)) if isinstance(value, list) else value


class Policy(forms.CharField):
    """The name of a retry policy, or one written in JSON."""

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value) or ""
        return _object(text) if text.startswith("{") else text or {}

    def prepare_value(self, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) and value else value or ""


def _number(label: str, unit: str, default: Any = "", **options: Any) -> forms.IntegerField:
    widget = forms.NumberInput(attrs={"placeholder": str(default), "data-unit": unit})
    return forms.IntegerField(label=label, required=False, help_text=unit, widget=widget, **options)


def _text(label: str, help_text: str = "", **options: Any) -> forms.CharField:
    return forms.CharField(label=label, help_text=help_text, required=False, **options)


COMMAND_HELP = "Words and quotes as in a shell. For pipes and variables: sh -c 'echo $HOME | wc -c'"


class JobForm(forms.Form):
    """All that a person may say of a job."""

    name = _text("Name", "For people; jobs are found by it.")
    image = _text("Image", "Such as busybox:latest; empty only for local processes.")
    command = Command(label="Command", help_text=COMMAND_HELP)
    queue = _text("Queue", widget=forms.TextInput(attrs={"placeholder": "default"}))
    priority = _number("Priority", "0 to 100, higher first", 50)
    environment = Lines(
        label="Environment",
        help_text="Lines NAME=value, or a JSON object;"
        f" {validators.MASK} keeps a value that is not shown.",
    )
    labels = Lines(label="Labels", help_text="Lines name=value, or a JSON object.")
    scheduled_for = forms.DateTimeField(
        label="Not before",
        required=False,
        widget=forms.DateTimeInput(
            attrs={"type": "datetime-local", "step": 1}, format="%Y-%m-%dT%H:%M:%S"
        ),
    )

    executor = forms.ChoiceField(required=False, label="Executor")
    isolation = forms.ChoiceField(choices=Isolation.choices, label="Isolation")
    network = _text("Network", "`none`, or the name of an engine's network.")
    working_dir = _text("Working directory")
    pull_policy = forms.ChoiceField(choices=PullPolicy.choices, label="Pull the image")

    cpu_limit = forms.FloatField(label="CPU", required=False, help_text="cores")
    memory_limit_mb = _number("Memory", "MiB")
    pids_limit = _number("Processes", "at once")
    timeout_seconds = _number("Longest run", "seconds")
    start_timeout_seconds = _number("Longest start", "seconds", 600)
    queue_timeout_seconds = _number("Longest wait in the queue", "seconds")
    stop_grace_seconds = _number("Grace before force", "seconds", 10)
    max_retries = _number("Retries", "after failures of its own", 3)
    retry_policy = Policy(
        label="Retry policy", required=False, help_text="A name, or JSON; empty is `default`."
    )

    queue_now = forms.BooleanField(label="Queue now", required=False, initial=True)
    revision = forms.CharField(required=False, widget=forms.HiddenInput)
    once = forms.CharField(
        max_length=64,
        required=False,
        widget=forms.HiddenInput,
        initial=lambda: secrets.token_hex(16),
    )
    """Tells one submission from the same one sent twice."""

    groups = (
        ("", ("name", "image", "command", "queue", "priority")),
        ("Environment and labels", ("environment", "labels")),
        (
            "Where and when",
            ("executor", "isolation", "network", "pull_policy", "working_dir", "scheduled_for"),
        ),
        (
            "Limits and retries",
            (
                *("cpu_limit", "memory_limit_mb", "pids_limit", "timeout_seconds"),
                *("start_timeout_seconds", "queue_timeout_seconds", "stop_grace_seconds"),
                *("max_retries", "retry_policy"),
            ),
        ),
    )

    def __init__(self, *given: Any, only: Iterable[str] | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        aliases = sorted(conf.executors())
        executor: Any = self.fields["executor"]
        executor.choices = [
            ("", "any that offers the isolation"),
            *zip(aliases, aliases, strict=True),
        ]
        policies = ", ".join(sorted({*retries.BUILT_IN, *conf.settings.RETRY_POLICIES}))
        self.fields["retry_policy"].help_text = f"{policies}, or JSON."
        for name in {*self.fields} - {*(self.fields if only is None else only)}:
            del self.fields[name]

    def sections(self) -> Iterator[dict[str, Any]]:
        """The groups with their fields; one is open when something in it was said or is wrong."""
        for title, names in self.groups:
            fields = [self[name] for name in names if name in self.fields]
            if fields:
                open_ = not title or any(field.errors or self._is_said(field) for field in fields)
                yield {"title": title, "fields": fields, "open": open_}

    def _is_said(self, field: forms.BoundField) -> bool:
        usual = USUAL.get(field.name)
        said = self.data.get(field.html_name) if self.is_bound else self.initial.get(field.name)
        return said not in (None, "", {}, usual) and str(said) != str(usual)

    def wanted(self, source: ContainerJob | None) -> dict[str, Any]:
        """What was said, by field of a job; what was left empty is left to its default.

        A value of the environment that was not shown is the one of `source`.
        """
        said = {name: self.cleaned_data[name] for name in self.fields if name in USUAL}
        if isinstance(said.get("environment"), dict):
            said["environment"] = _with_kept(said["environment"], source)
        return {name: USUAL[name] if value in (None, "") else value for name, value in said.items()}

    def marked(self) -> bool:
        """Is something wrong at a field?"""
        return any(name != NON_FIELD_ERRORS for name in self.errors)

    def refuse(self, error: ValidationError) -> None:
        """Show what is wrong, each at its field."""
        by_field = getattr(error, "error_dict", None)
        if by_field is None:
            self.add_error(None, error)
            return
        for name, errors in by_field.items():
            self.add_error(name if name in self.fields else None, errors)


def _with_kept(said: dict[str, Any], source: ContainerJob | None) -> dict[str, Any]:
    there = source.environment if source else {}
    return {
        name: there.get(name, value) if value == validators.MASK else value
        for name, value in said.items()
    }


def as_typed(job: ContainerJob) -> dict[str, Any]:
    """What the form shows of a job that is there; values of the environment stay hidden."""
    return {name: getattr(job, name) for name in USUAL} | {
        "environment": dict.fromkeys(job.environment, validators.MASK),
        "revision": job.revision,
    }


_BLANK = ContainerJob()
USUAL = {name: getattr(_BLANK, name) for name in JobForm.base_fields if name in SUBMITTABLE}
"""What a job has where nothing is said."""
