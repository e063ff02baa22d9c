"""What a field of a job may hold. Every message names what is allowed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import ValidationError

from container_manager import conf, retries

MAX_COMMAND_BYTES = 128 * 1024
MAX_ENVIRONMENT_VARIABLES = 1_000
MAX_ENVIRONMENT_BYTES = 128 * 1024
MAX_LABELS, MAX_LABEL_LENGTH = 64, 1_024
MIN_MEMORY_MB = 6
MAX_CPU, MAX_MEMORY_MB, MAX_PIDS = 1_024.0, 16 * 1024 * 1024, 1_000_000
MAX_PATH_PART_BYTES = 255
MAX_SECONDS = 366 * 24 * 3600
LARGEST_NUMBER = 2**63 - 1
RESERVED_PREFIX = "CM_"
MASK = "***"
"""How a value of the environment is shown, so none that is kept."""

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Between them both databases can still add a wait of any length."""

# What a whole text must be; the API shows these in its document.
# The grammar of an image reference: [host[:port]/]path[:tag][@digest].
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
# Each text can be read in one way only, so that no text takes a regex engine for ever.
_HOST_PART = r"[A-Za-z0-9]+(?:-+[A-Za-z0-9]+)*"
_HOST = rf"{_HOST_PART}(?:\.{_HOST_PART})*\.?(?::[0-9]{{1,5}})?"
IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_./-]{0,126}[A-Za-z0-9])?")


def refuse(message: str) -> None:
    # Not `invalid`: a field that has a message of its own for a code would put that in its place.
    raise ValidationError(message, code="refused")


def plain_text(value: Any) -> None:
    """A string without NUL characters and lone surrogates: no database can keep those."""
    if not isinstance(value, str):
        refuse("Must be a string.")
    if "\x00" in value:
        refuse("Must not contain NUL characters.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        refuse("Must not contain lone surrogates.")


def name(value: Any) -> None:
    plain_text(value)
    if not value.strip():
        refuse("Must not be blank.")
    if any(character in value for character in "\r\n"):
        refuse("Must be one line.")


def image(value: Any) -> None:
    plain_text(value)
    if value and (len(value) > 255 or not IMAGE.fullmatch(value)):
        refuse(f"{value[:80]!r} is not an image reference such as busybox:latest.")


def command(value: Any) -> None:
    if not isinstance(value, list) or not value:
        refuse("Must be a list of at least one string.")
    for item in value:
        plain_text(item)
    if not value[0]:
        refuse("The first item, the program, must not be empty.")
    if sum(len(item.encode()) + 1 for item in value) > MAX_COMMAND_BYTES:
        refuse(f"Must not be longer than {MAX_COMMAND_BYTES} bytes in all.")


def split_command(value: Any) -> Any:
    """A plain string becomes a list, split as a shell would. Raises ValidationError."""
    if not isinstance(value, str):
        return value
    plain_text(value)
    try:
        return shlex.split(value)
    except ValueError as error:
        raise ValidationError(f"Cannot be split as a shell would: {error}.") from error


def working_dir(value: Any) -> None:
    plain_text(value)
    if value and not value.startswith("/"):
        refuse("Must be an absolute path.")
    if any(len(part.encode()) > MAX_PATH_PART_BYTES for part in value.split("/")):
        refuse(f"No part of it may be longer than {MAX_PATH_PART_BYTES} bytes.")


def environment(value: Any) -> None:
    _object_of_strings(value)
    for variable in value:
        if not VARIABLE.fullmatch(variable):
            refuse(f"{variable[:80]!r} is not a variable name (letters, digits, underscore).")
        if variable.startswith(RESERVED_PREFIX):
            refuse(f"{variable!r}: names that begin with {RESERVED_PREFIX} are reserved.")
        if value[variable] == MASK:
            refuse(f"{variable!r}: {MASK} is how values are shown; give the value itself.")
    if len(value) > MAX_ENVIRONMENT_VARIABLES:
        refuse(f"Must not have more than {MAX_ENVIRONMENT_VARIABLES} variables.")
    if sum(len(key) + len(text.encode()) for key, text in value.items()) > MAX_ENVIRONMENT_BYTES:
        refuse(f"Must not be longer than {MAX_ENVIRONMENT_BYTES} bytes in all.")


def labels(value: Any) -> None:
    _object_of_strings(value)
    if len(value) > MAX_LABELS:
        refuse(f"Must not have more than {MAX_LABELS} labels.")
    if any(len(text) > MAX_LABEL_LENGTH for text in value.values()):
        refuse(f"No value may have more than {MAX_LABEL_LENGTH} characters.")
    for label in value:
        if not LABEL.fullmatch(label):
            refuse(f"{label[:80]!r} is not a label name (letters, digits, . _ / -).")


def _object_of_strings(value: Any) -> None:
    if not isinstance(value, dict):
        refuse("Must be an object of strings.")
    for key, text in value.items():
        plain_text(key)
        plain_text(text)


def queue_name(value: Any) -> None:
    plain_text(value)
    if not QUEUE.fullmatch(value):
        refuse(f"{value[:80]!r} is not a queue name (letters, digits, . _ -).")


def network(value: Any) -> None:
    plain_text(value)
    if not QUEUE.fullmatch(value) or value.startswith("container") or value == "host":
        refuse(f"{value[:80]!r} is not allowed: `none`, or the name of an engine's network.")


def one_of(value: str, allowed: Iterable[str]) -> None:
    words = list(allowed)
    if value not in words:
        refuse(f"{value[:80]!r} is not one of {', '.join(words)}.")


def executor(value: Any) -> None:
    plain_text(value)
    known = sorted(conf.executors())
    if value and value not in known:
        refuse(f"{value[:80]!r} is not a known executor: {', '.join(known)}, or empty for any.")


def moment(value: Any) -> None:
    if not EARLIEST <= value < LATEST:
        refuse(f"Must be from {EARLIEST.year} to {LATEST.year - 1}.")


def retry_policy(value: Any) -> None:
    try:
        retries.read_policy(value, conf.settings.RETRY_POLICIES)
    except retries.PolicyError as error:
        raise ValidationError(str(error), code="refused") from error


def number(value: Any, *, whole: bool) -> None:
    """A number as it was given, before Django's fields make one of it."""
    strange = isinstance(value, bool) or not isinstance(value, int | float | str | None)
    broken = whole and isinstance(value, float) and value % 1 != 0
    if strange or broken or value == "":
        refuse("Must be a whole number." if whole else "Must be a number.")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        refuse(f"Must not be larger than {LARGEST_NUMBER}.")


class InRange:
    """A finite number from `low` to `high`."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse("Must be a number.")
        if not self.low <= value <= self.high:  # also refuses NaN
            refuse(f"Must be from {self.low} to {self.high}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InRange) and (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.low, self.high))

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return "container_manager.models.validators.InRange", [self.low, self.high], {}
