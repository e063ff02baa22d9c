"""What became of jobs lately."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from django.utils import timezone

from container_manager.reports.activity import failures_by_reason, throughput
from tests.factories import JobFactory, UserFactory

pytestmark = pytest.mark.django_db


def ended(status, minutes_ago, **fields):
    at = timezone.now() - timedelta(minutes=minutes_ago)
    started = at - timedelta(seconds=5)
    return JobFactory(status=status, launched_at=started, completed_at=at, **fields)


def test_every_slot_is_there_oldest_first_and_begins_on_a_round_time():
    slots = throughput(minutes=60, bucket_minutes=5)
    starts = [slot.start for slot in slots]
    assert len(starts) == 12
    assert {later - earlier for earlier, later in pairwise(starts)} == {timedelta(minutes=5)}
    assert {(start.minute % 5, start.second, start.microsecond) for start in starts} == {(0, 0, 0)}
    assert starts[-1] <= timezone.now() < starts[-1] + timedelta(minutes=5, seconds=30)


def test_each_end_is_counted_once_in_the_slot_in_which_it_was():
    for status in ("completed", "completed", "failed", "cancelled", "killed", "retrying"):
        ended(status, 12)
    ended("completed", 120)
    JobFactory(status="running")
    slots = throughput(minutes=60, bucket_minutes=5)
    used = [slot for slot in slots if slot.completed or slot.failed or slot.other]
    (slot,) = used
    assert (slot.completed, slot.failed, slot.other) == (2, 1, 2)
    assert slot.start <= timezone.now() - timedelta(minutes=12) < slot.start + timedelta(minutes=5)
    assert slot.as_json()["start"] == slot.start.isoformat()


def test_slots_may_be_an_hour_long():
    ended("completed", 90)
    slots = throughput(minutes=24 * 60, bucket_minutes=60)
    assert (len(slots), sum(slot.completed for slot in slots)) == (24, 1)


def test_the_jobs_of_one_owner_can_be_told_alone():
    owner = UserFactory()
    ended("completed", 1, created_by=owner)
    ended("completed", 1)
    ended("failed", 1, reason="oom", created_by=owner)
    ended("failed", 1, reason="timeout")
    assert sum(slot.completed for slot in throughput(owner)) == 1
    assert failures_by_reason(owner) == {"oom": 1}


def test_failures_are_counted_by_reason_the_most_frequent_first():
    for reason in ("oom", "exit_code", "exit_code", ""):
        ended("failed", 1, reason=reason)
    ended("failed", 60 * 25, reason="timeout")
    ended("killed", 1, reason="killed")
    counts = failures_by_reason()
    assert counts == {"exit_code": 2, "by_hand": 1, "oom": 1}
    assert next(iter(counts)) == "exit_code"


def test_charts_cost_two_queries(django_assert_max_num_queries):
    for minutes in range(30):
        ended("completed", minutes)
    with django_assert_max_num_queries(2):
        throughput()
    with django_assert_max_num_queries(2):
        failures_by_reason()
