"""How states of runs and tasks are written on every page."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from container_manager.states import Reason, WorkflowState
from container_manager.templatetags.cm import NOTHING, running_for, span, visible

register = template.Library()

_W = WorkflowState

SIGNS = {
    _W.QUEUED: "\N{MIDDLE DOT}",
    _W.RUNNING: "\N{BLACK RIGHT-POINTING TRIANGLE}",
    _W.SUCCESS: "\N{CHECK MARK}",
    _W.FAILED: "\N{MULTIPLICATION SIGN}",
    _W.RETRYING: "\N{ANTICLOCKWISE OPEN CIRCLE ARROW}",
    _W.SKIPPED: "\N{EN DASH}",
    _W.UPSTREAM_FAILED: "!",
}
"""What tells states apart for whom colours do not."""

REASONS = {
    "upstream": "It never ran, for how those ended that it depends on.",
    "cancelled": "Its run, or its job, was cancelled.",
    "skipped_by_hand": "Somebody marked it as skipped.",
    "skip": "It ended with one of its skip_exit_codes: it succeeded and counts as skipped.",
    "job_deleted": "Its job was deleted before its end was read.",
    "task_failed": "At least one of its tasks failed.",
}


@register.filter
def sign(state: str) -> str:
    return SIGNS.get(state, "?")  # type: ignore[call-overload, no-any-return]


@register.filter
def words(state: str) -> str:
    """
    >>> words("upstream_failed")
    'upstream failed'
    """
    return visible(state).replace("_", " ")


@register.filter
def flow_state(state: str) -> SafeString:
    """The state of a run or a task in its colour."""
    known = state in WorkflowState.values
    return format_html(
        '<span class="cm-state cm-flow-{}" title="{}">{}</span>',
        state if known else "unknown",
        WorkflowState(state).meaning if known else "",
        words(state),
    )


@register.filter
def flow_reason(word: str) -> SafeString:
    """A reason of a run or a task, and its sentence when pointed at."""
    meaning = REASONS.get(word) or (Reason(word).meaning if word in Reason.values else "")
    return format_html('<span class="cm-reason" title="{}">{}</span>', meaning, words(word))


@register.filter
def flow_took(row: Any) -> SafeString:
    """How long a run or a task took, or goes on."""
    if row.duration_ms is not None:
        return format_html('<span class="cm-time">{}</span>', span(row.duration))
    if row.state in (_W.RUNNING, _W.RETRYING) and row.started_at:
        return running_for(row.started_at)
    return NOTHING


@register.simple_tag
def square(state: str, url: str, title: str) -> SafeString:
    """A small coloured square with a sign, that leads somewhere and says what it means."""
    return format_html(
        '<a class="cm-square cm-flow-{}" href="{}" title="{}" aria-label="{}">{}</a>',
        *(state, url, title, title, sign(state)),
    )
