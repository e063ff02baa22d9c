"""How moments, lengths of time, sizes, ids and states are written on every page."""

from __future__ import annotations

import shlex
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django import template
from django.apps import apps
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.states import JobStatus, Reason

register = template.Library()

SHORT = 12
"""Characters at the end of an id: its random part, so that jobs of one moment differ."""

NOTHING = format_html('<span class="cm-nothing">{}</span>', "\N{EN DASH}")

_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {
    0x7F: 0x2421
}


@register.filter
def visible(text: Any) -> str:
    """Control characters as the pictures that Unicode has of them."""
    return str(text).translate(_PICTURES)


@register.filter
def isolated(text: Any) -> SafeString:
    """Somebody's text: escaped, visible, and without power over the direction of what follows."""
    return format_html("<bdi>{}</bdi>", visible(text))


@register.filter
def span(passed: timedelta | float | None) -> str:
    """A length of time in a few characters; `cm.js` writes it the same way.

    >>> span(0.25), span(75), span(7500), span(3 * 86400)
    ('0.2 s', '1 min 15 s', '2 h 05 min', '3 d 0 h')
    """
    if passed is None:
        return ""
    seconds = passed.total_seconds() if isinstance(passed, timedelta) else passed
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def exact(moment: datetime) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S %Z")


@register.filter
def ago(moment: datetime | None) -> SafeString:
    """`5 min 10 s ago`, the exact moment when pointed at; it goes on counting in the browser."""
    if moment is None:
        return NOTHING
    seconds = (timezone.now() - moment).total_seconds()
    words = f"{span(round(seconds))} ago" if seconds >= 0 else f"in {span(round(-seconds))}"
    return format_html(
        '<time class="cm-time" datetime="{}" title="{}" data-cm-ago>{}</time>',
        moment.isoformat(),
        exact(moment),
        "just now" if 0 <= seconds < 1 else words,
    )


def running_for(since: datetime) -> SafeString:
    """A length of time that still grows."""
    return format_html(
        '<time class="cm-time" datetime="{}" title="since {}" data-cm-since>{}</time>',
        since.isoformat(),
        exact(since),
        span(max(0, round((timezone.now() - since).total_seconds()))),
    )


@register.filter
def took(job: Any) -> SafeString:
    """How long the latest attempt of a job ran, or runs."""
    if job.duration_ms is not None:
        return format_html('<span class="cm-time">{}</span>', span(job.duration))
    if job.status == JobStatus.RUNNING and job.launched_at:
        return running_for(job.launched_at)
    return NOTHING


@register.filter
def size(count: int | None) -> str:
    """
    >>> size(512), size(1536), size(5 * 1024 * 1024)
    ('512 B', '1.5 KiB', '5.0 MiB')
    """
    if count is None:
        return ""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def short_id(job_id: UUID) -> str:
    """What a person needs to name a job: the end of its id."""
    return job_id.hex[-SHORT:]


@register.filter
def copyable(job_id: UUID) -> SafeString:
    """A short id that copies the whole one."""
    return format_html(
        '<button type="button" class="cm-id" id="cm-id-{}" data-cm-copy="{}" title="Copy {}">'
        "{}</button>",
        short_id(job_id),
        job_id,
        job_id,
        short_id(job_id),
    )


@register.filter
def state(status: str, meaning: str = "") -> SafeString:
    """A state in its colour."""
    known = status in JobStatus.values
    return format_html(
        '<span class="cm-state cm-{}" title="{}">{}</span>',
        status if known else "unknown",
        meaning or (JobStatus(status).meaning if known else ""),
        visible(status),
    )


@register.filter
def reason(word: str) -> SafeString:
    """A reason, and its sentence when pointed at."""
    meaning = Reason(word).meaning if word in Reason.values else ""
    return format_html('<span class="cm-reason" title="{}">{}</span>', meaning, visible(word))


@register.filter
def title(job: Any) -> str:
    """Its name, or else what it runs."""
    return visible(job.name or " ".join(map(str, job.command)) or job.pk)


@register.filter
def as_in_a_shell(command: Any) -> str:
    """A command that can be copied into a shell."""
    words = command if isinstance(command, list) else [command]
    return visible(shlex.join(map(str, words)))


@register.filter
def result(job: Any) -> SafeString | str:
    """How the latest attempt ended, in a word or two; empty where the state says it all."""
    if job.reason in ("", job.status):
        return ""
    if job.reason == Reason.EXIT_CODE and job.exit_code is not None:
        return f"exit {job.exit_code}"
    return reason(job.reason)


@register.inclusion_tag("container_manager/admin/head.html")
def cm_head() -> dict[str, Any]:
    """The style and the scripts of our pages."""
    return {"unfold": apps.is_installed("unfold")}
