"""The forms of a DAG: its document as YAML, a trigger, a backfill.

They only read what was typed; what is right is for `workflows.spec` and `workflows.dags` to say.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import yaml
from django import forms
from django.core.exceptions import ValidationError

from container_manager.exceptions import Problem, SpecError
from container_manager.models import Dag
from container_manager.workflows.masking import masked, unmasked
from container_manager.workflows.spec import DagSpec, read, validate

MOST_PARAMS = 100
"""Parameters that a form has fields for."""

EXAMPLE = """\
# Three tasks: `transform` gets what `extract` printed, `notify` runs however the others ended.
name: {name}
schedule: "0 2 * * *"
timezone: UTC
params:
  GREETING: hello
defaults:
{defaults}
  max_retries: 1
tasks:
  extract:
    command: [sh, -c, "echo 42"]
  transform:
    command: [sh, -c, 'echo "$GREETING: $ROWS rows"']
    depends_on: [extract]
    environment_from:
      ROWS: extract.output
  notify:
    command: [sh, -c, "echo done"]
    depends_on: [transform]
    trigger_rule: all_done
"""

IN_CONTAINERS = "  image: busybox:latest"
AS_PROCESSES = "  executor: process\n  isolation: process"


# The document -------------------------------------------------------------------------------------


_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):  # type: ignore[misc]
    """Writes YAML that `documents.read` reads back as the same data."""

    def represent_str(self, text: str) -> Any:
        if "\n" in text:
            return self.represent_scalar("tag:yaml.org,2002:str", text, style="|")
        quoted = text[:1] in "+-.0123456789"  # 1e5 and 0o17 are numbers to us, not to PyYAML
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)

    def represent_list(self, values: Any) -> Any:
        short = all(
            not isinstance(value, dict | list) and "\n" not in str(value) for value in values
        )
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=short)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_representer(list, _Dumper.represent_list)


def as_yaml(document: Mapping[str, Any]) -> str:
    """A stored document as people write it, without what says nothing."""
    said = {name: value for name, value in document.items() if value not in (None, "", {})}
    text: str = yaml.dump(
        said, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return text


class DagForm(forms.Form):
    """The whole DAG in one text."""

    document = forms.CharField(
        label="Document",
        strip=False,
        widget=forms.Textarea(attrs={"rows": 28, "spellcheck": "false", "wrap": "off"}),
    )
    revision = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *given: Any, dag: Dag | None = None, **named: Any) -> None:
        super().__init__(*given, **named)
        self._dag = dag
        self.problems: list[Problem] = []
        """What is wrong with the document."""

    def clean_document(self) -> str:
        return str(self.cleaned_data["document"]).replace("\r\n", "\n")

    def spec(self) -> DagSpec | None:
        """What was written; None where it has mistakes, which are in `problems` then."""
        text = self.cleaned_data["document"]
        try:
            document = read(text)
            if self._dag is not None:
                document = unmasked(document, self._dag.spec)
            return validate(document, text)
        except SpecError as error:
            self.problems = error.problems
            return None

    def refuse(self, error: ValidationError) -> None:
        """What the verb says is wrong."""
        by_field = getattr(error, "error_dict", None)
        named = by_field.items() if by_field else [("", [error])]
        self.problems = [
            Problem(place, " ".join(each.messages)) for place, errors in named for each in errors
        ]


def as_typed(dag: Dag) -> dict[str, Any]:
    """What the form shows of a DAG that is there; values of environments stay hidden."""
    return {"document": as_yaml(masked(dag.spec)), "revision": dag.revision}


# A trigger and a backfill -------------------------------------------------------------------------


def _moment(label: str, *, required: bool = False, **options: Any) -> forms.DateTimeField:
    return forms.DateTimeField(
        label=label,
        required=required,
        widget=forms.DateTimeInput(
            attrs={"type": "datetime-local", "step": 1}, format="%Y-%m-%dT%H:%M:%S"
        ),
        **options,
    )


def _once() -> forms.CharField:
    return forms.CharField(
        required=False,
        max_length=64,
        widget=forms.HiddenInput,
        initial=lambda: secrets.token_hex(16),
    )


class TriggerForm(forms.Form):
    """A run by hand: the DAG's parameters, and the moment that it stands for."""

    execution_date = _moment(
        "Execution date", help_text="UTC. What the run stands for; empty: now."
    )
    once = _once()
    """Tells one trigger from the same one sent twice."""

    def __init__(self, *given: Any, dag: Dag, **named: Any) -> None:
        super().__init__(*given, **named)
        self._params = list(DagSpec.stored(dag.spec).params.items())
        for number, (name, usual) in enumerate(self._params[:MOST_PARAMS]):
            self.fields[f"param_{number}"] = forms.CharField(
                label=name,
                initial=usual,
                required=False,
                strip=False,
                # A browser takes the line breaks out of a field of one line.
                widget=forms.Textarea(attrs={"rows": 4}) if "\n" in usual else forms.TextInput(),
            )

    @property
    def param_fields(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name.startswith("param_")]

    def params(self) -> dict[str, str]:
        return {
            name: self.cleaned_data[f"param_{number}"].replace("\r\n", "\n")
            for number, (name, _usual) in enumerate(self._params[:MOST_PARAMS])
        }

    def refuse(self, error: ValidationError) -> None:
        self.add_error(None, error.messages)


class BackfillForm(forms.Form):
    """The stretch of time whose slots get runs."""

    first = _moment(
        "First", required=True, help_text="UTC; a slot at this very moment counts, too."
    )
    last = _moment("Last", required=True, help_text="UTC; a slot at this very moment counts, too.")

    def refuse(self, error: ValidationError) -> None:
        """Show what is wrong, each at its field."""
        for name, errors in (getattr(error, "error_dict", None) or {"": [error]}).items():
            self.add_error(name if name in self.fields else None, errors)
