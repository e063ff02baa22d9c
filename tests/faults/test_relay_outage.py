"""Relays and listeners while PostgreSQL is restarted, killed or stands still; a real restore.

The server is a test's own, and its database was restored there from a dump of another server.
"""

from __future__ import annotations

import time

import pytest
from django.db import connection

from container_manager.events import subscribe
from container_manager.models import Event, EventSequencer, PublisherState, StateHistory
from container_manager.models.sequencing import Snapshot, take_all
from tests.factories import JobFactory
from tests.models.ways import execute
from tests.support.feeds import own_feed
from tests.support.postgres_server import PostgresServer, WorkersAt
from tests.support.publishers import to_file, told
from tests.support.workers import wait_until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.postgres,
    pytest.mark.django_db(transaction=True),
]


def some_moves(jobs: int = 10) -> None:
    for _ in range(jobs):
        JobFactory().transition_to("queued")


def restarted(server: PostgresServer) -> None:
    server.restart()


def killed(server: PostgresServer) -> None:
    server.kill()
    server.start()


def paused(server: PostgresServer) -> None:
    server.pause()
    time.sleep(2)
    server.go_on()


def sessions_ended(server: PostgresServer) -> None:
    server.end_sessions(f"datname = '{server.database}'")
    connection.close()


@pytest.mark.parametrize("fault", [restarted, killed, paused, sessions_ended])
def test_a_relay_and_a_listener_go_on_after_an_outage_of_the_database(
    crew: WorkersAt, server: PostgresServer, tmp_path, fault
):
    file, heard = tmp_path / "told", []
    relay = crew.start_relay(PUBLISHERS={"file": to_file(file)}).wait_until_started()
    wait_until(lambda: PublisherState.objects.filter(holder__isnull=False).exists())
    with own_feed(), subscribe(heard.append):
        for _ in range(2):
            some_moves()
            before = Event.objects.count()
            fault(server)
            some_moves()
            wait_until(lambda: Event.objects.count() >= before + 20)  # noqa: B023
        wait_until(lambda: len({event.id for event in heard}) == 80)
        wait_until(lambda: len({sequence for sequence, _, _ in told(file)}) == 80)
    assert [event.sequence for event in heard] == list(range(1, 81))
    assert StateHistory.objects.count() == 80
    assert not relay.has_ended


USE_UP = """
DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$
"""
"""Numbers of transactions, so that this server has come further than the other one."""


def test_a_dump_that_was_restored_on_another_server_goes_on_there(
    own_postgres: PostgresServer, transactional_db
):
    """Where transactions have lower numbers than those that the dump says are dealt with."""
    own_postgres.be_up()
    execute(USE_UP)
    job, untold = JobFactory(), JobFactory()
    take_all()
    untold.transition_to("queued")
    own_postgres.restore_djangos("restored")
    with own_postgres.used_by_django("restored"):
        before = EventSequencer.objects.get()
        assert take_all() == 1
        job.transition_to("queued")
        assert take_all() == 1
        assert take_all() == 0
        moves = [(job.pk, 1), (untold.pk, 1), (untold.pk, 2), (job.pk, 2)]
        assert list(Event.objects.values_list("entity_id", "version")) == moves
        assert list(Event.objects.values_list("sequence", flat=True)) == [1, 2, 3, 4]
        after = EventSequencer.objects.get()
        ends = [Snapshot.of(row.snapshot).end for row in (after, before)]
        assert ends == sorted(ends)
        assert after.cluster != before.cluster
