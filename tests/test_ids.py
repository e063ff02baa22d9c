"""Time-ordered identifiers."""

from __future__ import annotations

import uuid

import pytest

from container_manager import ids


@pytest.fixture(autouse=True)
def first_of_its_process(monkeypatch):
    monkeypatch.setattr(ids, "_last", 0)


def test_an_id_is_a_uuid_of_version_7():
    made = ids.uuid7()
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_no_two_ids_are_the_same():
    assert len({ids.uuid7() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("milliseconds", [0, 1, 1_700_000_000_000, 2**48 - 1])
def test_the_first_48_bits_are_the_time(monkeypatch, milliseconds):
    monkeypatch.setattr(ids.time, "time_ns", lambda: milliseconds * 1_000_000 + 999_999)
    assert ids.uuid7().int >> 80 == milliseconds


def test_a_later_id_is_greater_as_number_text_and_hex(monkeypatch):
    clock = iter(range(10**18, 10**18 + 100 * 10**6, 10**6))
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(clock))
    made = [ids.uuid7() for _ in range(100)]
    assert made == sorted(made)
    assert [str(one) for one in made] == sorted(str(one) for one in made)
    assert [one.hex for one in made] == sorted(one.hex for one in made)


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_version_and_variant_stand_whatever_the_random_bits_are(monkeypatch, byte):
    monkeypatch.setattr(ids.os, "urandom", lambda count: byte * count)
    made = ids.uuid7()
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_ids_of_one_moment_are_in_the_order_in_which_they_were_made(monkeypatch):
    monkeypatch.setattr(ids.time, "time_ns", lambda: 10**18)
    made = [ids.uuid7() for _ in range(1000)]
    assert made == sorted(made)


def test_a_clock_that_steps_back_does_not_take_the_order_with_it(monkeypatch):
    clock = iter([2 * 10**18, 10**18])
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(clock))
    first, second = ids.uuid7(), ids.uuid7()
    assert first < second
