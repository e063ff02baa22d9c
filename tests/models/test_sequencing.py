"""Every committed move gets its place: one sequence without gaps, in order per entity."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.models import F
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from container_manager import guarding, lifecycle
from container_manager.db_guard import AWAITED, MOVES_CHANNEL
from container_manager.models import ContainerJob, Event, EventSequencer, StateHistory, sequencing
from container_manager.models.sequencing import (
    EVENTS_CHANNEL,
    Snapshot,
    await_moves,
    is_behind,
    take,
    take_all,
)
from container_manager.workflows import runs
from tests.factories import (
    DagFactory,
    JobFactory,
    RunFactory,
    TaskFactory,
    TrialFactory,
    UserFactory,
)
from tests.models.ways import execute
from tests.support.second_connection import second_session
from tests.support.threads import in_threads
from tests.support.workers import wait_until

committed = pytest.mark.django_db(transaction=True)


def told():
    return list(Event.objects.order_by("sequence").values_list("entity_id", "version"))


def versions_of(job):
    rows = Event.objects.filter(entity_id=job.pk).order_by("sequence")
    return list(rows.values_list("version", flat=True))


def assert_all_is_told_once_and_in_order():
    assert take_all() == 0
    sequences = list(Event.objects.order_by("sequence").values_list("sequence", flat=True))
    assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
    assert sequences[-1] == Event.objects.newest()
    history = StateHistory.objects.values_list("id", flat=True)
    assert set(history) == set(Event.objects.values_list("event_id", flat=True))
    lives = defaultdict(list)
    for entity_id, version in told():
        lives[entity_id].append(version)
    assert all(life == sorted(set(life)) for life in lives.values())


# What an event is ---------------------------------------------------------------------------------


@committed
def test_every_move_becomes_an_event_that_says_what_the_history_says():
    job, trial = JobFactory(), TrialFactory()
    job.transition_to("queued")
    job.transition_to("running")
    assert take() == 4
    columns = (
        *("entity_type", "entity_id", "old_state", "new_state", "version", "attempt"),
        *("actor", "reason", "metadata", "changed_at"),
    )
    for row in StateHistory.objects.all():
        event = Event.objects.filter(event_id=row.pk).values(*columns).get()
        assert event == {name: getattr(row, name) for name in columns}
    assert versions_of(job) == [1, 2, 3]
    assert versions_of(trial) == [1]
    assert_all_is_told_once_and_in_order()


@committed
def test_metadata_arrives_as_it_was_given():
    job = JobFactory()
    metadata = {"ä": [1, None, {"b": "\\"}], "n": 1.5}
    job.transition_to("queued", transition_info={"metadata": metadata})
    take()
    event = Event.objects.get(entity_id=job.pk, version=2)
    assert event.metadata == metadata


@committed
def test_an_event_belongs_to_whose_job_or_dag_it_is():
    ada, ben = UserFactory(), UserFactory()
    job, nobodys = JobFactory(created_by=ada), JobFactory()
    run = RunFactory(dag=DagFactory(created_by=ben))
    task = TaskFactory(dag_run=run)
    take()
    owners = dict(Event.objects.values_list("entity_id", "owner_id"))
    assert owners == {job.pk: ada.pk, nobodys.pk: None, run.pk: ben.pk, task.pk: ben.pk}
    assert list(Event.objects.visible_to(ada).values_list("entity_id", flat=True)) == [job.pk]
    root = UserFactory(is_superuser=True)
    assert Event.objects.visible_to(root).count() == 4


@committed
def test_an_event_outlives_its_entity_and_its_owner():
    ada = UserFactory()
    job = JobFactory(created_by=ada)
    take()
    kept = (job.pk, ada.pk)
    job.delete()
    StateHistory.objects.filter(entity_id=kept[0]).delete()
    ada.delete()
    assert list(Event.objects.values_list("entity_id", "owner_id")) == [kept]


@committed
@pytest.mark.parametrize("keep_history", [True, False])
def test_what_is_pruned_was_told_before(keep_history):
    job = JobFactory(status="completed", created_by=UserFactory())
    assert lifecycle.prune([job.pk], keep_history=keep_history) == {job.pk}
    take()
    assert list(Event.objects.values_list("entity_id", "owner")) == [(job.pk, job.created_by_id)]


@committed
def test_what_is_deleted_with_its_run_was_told_before():
    dag = DagFactory(created_by=UserFactory())
    run = RunFactory(dag=dag, state="success")
    task = TaskFactory(dag_run=run, state="success")
    assert runs.prune([run.pk]) == {run.pk}
    take()
    owners = dict(Event.objects.values_list("entity_id", "owner_id"))
    assert owners == {run.pk: dag.created_by_id, task.pk: dag.created_by_id}


# Who takes ----------------------------------------------------------------------------------------


@committed
def test_nothing_is_written_where_nothing_is_new():
    JobFactory()
    take()
    before = EventSequencer.objects.values().get()
    assert not is_behind()
    assert take() == 0
    assert EventSequencer.objects.values().get() == before


@pytest.mark.django_db
def test_a_transaction_may_take_what_it_did_itself_and_then_do_more():
    job = JobFactory()
    assert take() == 1
    job.transition_to("queued")
    other = JobFactory()
    assert take() == 2
    assert take() == 0
    job.transition_to("running")
    assert take() == 1
    assert (versions_of(job), versions_of(other)) == ([1, 2, 3], [1])


@committed
def test_what_is_rolled_back_is_not_told_and_leaves_no_gap():
    JobFactory()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        JobFactory()
        take()
        raise ZeroDivisionError
    JobFactory()
    take()
    assert len(told()) == 2
    assert_all_is_told_once_and_in_order()


@committed
def test_a_pass_has_a_limit_and_the_rest_has_its_turn():
    jobs = [JobFactory() for _ in range(10)]
    assert take(limit=4) == 4
    assert take(limit=4) == 4
    assert take(limit=4) == 2
    assert [entity for entity, _ in told()] == [job.pk for job in jobs]


@committed
def test_moves_of_one_entity_keep_their_order_when_the_clock_was_set_back():
    job, other = JobFactory(), JobFactory()
    job.transition_to("queued")
    job.transition_to("running")
    with guarding.lifted("default"):
        rows = StateHistory.objects.of(job)
        rows.filter(version=2).update(changed_at=F("changed_at") - timedelta(hours=1))
        rows.filter(version=3).update(changed_at=F("changed_at") - timedelta(minutes=30))
    take()
    assert versions_of(job) == [1, 2, 3]
    assert versions_of(other) == [1]


@committed
def test_after_a_flush_there_is_a_sequencer_and_it_begins_at_one():
    JobFactory()
    take()
    call_command("flush", verbosity=0, interactive=False)
    assert EventSequencer.objects.values_list("pk", "last_sequence").get() == (1, 0)
    job = JobFactory()
    assert take() == 1
    assert Event.objects.get().sequence == 1
    assert versions_of(job) == [1]


@committed
def test_a_sequencer_that_somebody_deleted_comes_back_and_tells_nothing_twice():
    JobFactory()
    take()
    newest = Event.objects.newest()
    EventSequencer.objects.all().delete()
    job = JobFactory()
    take_all()
    assert versions_of(job) == [1]
    assert Event.objects.newest() == newest + 1
    assert_all_is_told_once_and_in_order()


@committed
def test_what_was_before_the_tables_of_events_is_not_told():
    old = JobFactory()
    call_command("migrate", "container_manager", "0009", verbosity=0)
    try:
        old.transition_to("queued")
    finally:
        call_command("migrate", verbosity=0)
    assert take() == 0
    old.transition_to("running")
    assert take() == 1
    assert versions_of(old) == [3]


# Many at once -------------------------------------------------------------------------------------


@committed
@pytest.mark.parametrize("writers", [8])
def test_the_sequence_has_no_gap_while_many_write_and_two_take(writers):
    jobs = [[JobFactory() for _ in range(4)] for _ in range(writers)]
    shared = JobFactory()
    left = [writers]

    def write(mine):
        for status in ("queued", "running", "completed"):
            for job in mine:
                with transaction.atomic():
                    job.transition_to(status)
                    if random.random() < 0.3:
                        JobFactory()
        left[0] -= 1

    def sequence():
        while left[0] > 0:
            take(limit=random.choice([1, 3, 50]))

    in_threads(*(lambda mine=mine: write(mine) for mine in jobs), sequence, sequence)
    take_all()
    assert_all_is_told_once_and_in_order()
    assert versions_of(jobs[0][0]) == [1, 2, 3, 4]
    assert versions_of(shared) == [1]


# PostgreSQL: transactions commit in any order -----------------------------------------------------


@committed
@pytest.mark.postgres
def test_what_commits_late_is_told():
    """The classic bug: a reader that remembers the highest id it saw skips it for ever."""
    slow, quick = JobFactory(), JobFactory()
    take()
    with second_session() as late:
        late.move(slow, "queued")
        for status in ("queued", "running", "completed"):
            quick.transition_to(status)
            assert take() == 1
        late.commit()
    assert take() == 1
    assert versions_of(slow) == [1, 2]
    assert versions_of(quick) == [1, 2, 3, 4]
    assert_all_is_told_once_and_in_order()


@committed
@pytest.mark.postgres
def test_nothing_waits_behind_a_long_transaction_of_somebody_else():
    """The next bug: a watermark that waits for everything older."""
    with second_session() as long, second_session() as longer:
        long.number()
        longer.number()
        jobs = [JobFactory() for _ in range(3)]
        assert take(limit=2) == 2
        assert take(limit=2) == 1
        assert [entity for entity, _ in told()] == [job.pk for job in jobs]
        long.move(jobs[0], "queued")
        assert take() == 0
        long.commit()
        assert take() == 1
        longer.move(jobs[0], "running")
        longer.commit()
        assert take() == 1
    assert versions_of(jobs[0]) == [1, 2, 3]
    assert_all_is_told_once_and_in_order()


@committed
@pytest.mark.postgres
def test_a_limit_does_not_tear_the_order_of_an_entity_apart():
    """A transaction that began first may have made the later move."""
    job = JobFactory()
    take()
    with second_session() as early:
        early.number()
        job.transition_to("queued")
        JobFactory()
        early.move(job, "running")
        early.commit()
    assert take(limit=1) == 2
    assert versions_of(job) == [1, 2, 3]
    assert take(limit=1) == 1
    assert_all_is_told_once_and_in_order()


@committed
@pytest.mark.postgres
def test_a_limit_among_transactions_that_commit_late_loses_none():
    jobs = [JobFactory() for _ in range(6)]
    take()
    with second_session() as one, second_session() as two, second_session() as three:
        for late in (one, two, three):
            late.number()
        JobFactory()
        assert take() == 1
        for late, job in zip((three, one), jobs, strict=False):
            late.move(job, "queued")
            late.commit()
        jobs[2].transition_to("queued")
        assert [take(limit=1) for _ in range(4)] == [1, 1, 1, 0]
        two.move(jobs[3], "queued")
        two.commit()
        assert take(limit=1) == 1
    assert_all_is_told_once_and_in_order()


@committed
@pytest.mark.postgres
def test_a_transaction_that_takes_and_goes_on_is_not_dealt_with_when_younger_ones_are():
    with transaction.atomic(), second_session() as younger:
        job = JobFactory()
        younger.number()
        younger.commit()
        assert take() == 1
        job.transition_to("queued")
    assert take() == 1
    assert versions_of(job) == [1, 2]


@committed
@pytest.mark.postgres
def test_a_transaction_is_taken_as_a_whole():
    ContainerJob.objects.bulk_create(JobFactory.build() for _ in range(30))
    assert take(limit=10) == 30


@committed
@pytest.mark.postgres
def test_one_takes_at_a_time_and_the_others_go_on():
    with second_session() as other:
        other.run("SELECT * FROM event_sequencer FOR UPDATE")
        JobFactory()
        assert is_behind()
        assert take() == 0
        other.roll_back()
    assert take() == 1


HIGH = 10**15


@committed
@pytest.mark.postgres
@pytest.mark.parametrize("snapshot", [f"{HIGH}:{HIGH}:", f"{HIGH}:{HIGH + 9}:{HIGH},{HIGH + 3}"])
def test_a_dump_that_was_restored_elsewhere_goes_on_where_it_was(snapshot):
    """Its transactions had higher numbers than the ones of this server have."""
    told_before, untold = JobFactory(), JobFactory()
    Event.objects.all().delete()
    take()
    Event.objects.filter(entity_id=untold.pk).delete()
    EventSequencer.objects.update(snapshot=snapshot, last_sequence=F("last_sequence") - 1)
    assert is_behind()
    assert take() == 1
    assert versions_of(untold) == versions_of(told_before) == [1]
    untold.transition_to("queued")
    assert take() == 1
    assert take() == 0
    assert_all_is_told_once_and_in_order()


@committed
@pytest.mark.postgres
def test_a_dump_of_another_server_is_known_by_its_name():
    job = JobFactory()
    take()
    old = EventSequencer.objects.get()
    job.transition_to("queued")
    end = Snapshot.of(old.snapshot).end + 1_000  # as if it had come further than this server is
    for _ in range(1_000):
        execute("SELECT pg_current_xact_id()")
    EventSequencer.objects.update(snapshot=f"{end}:{end}:", cluster=old.cluster + 1)
    assert take() == 1
    assert versions_of(job) == [1, 2]
    assert EventSequencer.objects.get().cluster == old.cluster


@committed
@pytest.mark.postgres
def test_what_was_told_and_forgotten_is_not_told_again_after_a_restore():
    old, new = JobFactory(), JobFactory()
    take()
    Event.objects.all().delete()
    with guarding.lifted("default"):
        StateHistory.objects.of(old).update(changed_at=timezone.now() - timedelta(days=9))
    EventSequencer.objects.update(snapshot=f"{HIGH}:{HIGH}:")
    take()
    assert (versions_of(old), versions_of(new)) == ([], [1])


# PostgreSQL: who waits is woken -------------------------------------------------------------------


@pytest.fixture
def heard():
    """What was notified since it was asked last."""
    listening = connections.create_connection("default")
    with listening.cursor() as cursor:
        cursor.execute(f"LISTEN {MOVES_CHANNEL}; LISTEN {EVENTS_CHANNEL}")

    def ask():
        return [note.channel for note in listening.connection.notifies(timeout=0.2)]

    yield ask
    listening.close()


@committed
@pytest.mark.postgres
def test_a_move_wakes_who_waits_once(heard):
    execute(f"SELECT setval('{AWAITED}', 1)")
    job = JobFactory()
    assert heard() == []
    assert await_moves()
    assert heard() == []
    job.transition_to("queued")
    job.transition_to("running")
    assert heard() == [MOVES_CHANNEL]
    take()
    assert heard() == [EVENTS_CHANNEL]
    take()
    assert heard() == []


@committed
@pytest.mark.postgres
def test_a_role_that_may_only_write_jobs_wakes_and_cannot_ask_to_be_woken(heard):
    job = JobFactory()
    await_moves()
    execute("CREATE ROLE clerk")
    try:
        execute(
            "GRANT SELECT, INSERT, UPDATE ON container_jobs, state_history, job_changes TO clerk"
        )
        with transaction.atomic():
            execute("SET LOCAL ROLE clerk")
            assert not await_moves()
            execute("UPDATE container_jobs SET status = 'queued', queued_at = now(), version = 2")
        assert heard() == [MOVES_CHANNEL]
        take()
        assert versions_of(job) == [1, 2]
    finally:
        execute("DROP OWNED BY clerk; DROP ROLE clerk")


# SQLite: the counter ------------------------------------------------------------------------------


@committed
@pytest.mark.sqlite
def test_a_commit_order_is_not_used_again_after_the_newest_entity_is_gone():
    JobFactory()
    newest = JobFactory()
    take()
    pk = newest.pk
    newest.delete()
    assert StateHistory.objects.filter(entity_id=pk).delete()[0] == 1
    job = JobFactory()
    assert take() == 1
    assert versions_of(job) == [1]


# The rule by itself -------------------------------------------------------------------------------


@given(st.integers(3, 10**18), st.frozensets(st.integers(3, 10**18)))
def test_a_snapshot_reads_back_as_it_was_written(end, under_way):
    snapshot = Snapshot(end, frozenset(each for each in under_way if each < end))
    assert Snapshot.of(str(snapshot)) == snapshot


@given(st.data())
def test_whatever_the_order_of_commits_each_transaction_is_taken_once(data):
    """A small world of transactions, with passes of any limit between their commits."""
    dealt_with = Snapshot(3)
    following, open_, done, taken = 3, set(), set(), []
    for step in data.draw(st.lists(st.sampled_from(["begin", "commit", "pass"]), max_size=40)):
        if step == "begin":
            open_.add(following)
            following += 1
        elif step == "commit" and open_:
            each = data.draw(st.sampled_from(sorted(open_)))
            open_.remove(each)
            done.add(each)
        elif step == "pass":
            end = max(done, default=2) + 1
            now = Snapshot(end, frozenset(each for each in open_ if each < end))
            new = sorted(
                each for each in done if each >= dealt_with.end or each in dealt_with.under_way
            )
            limit = data.draw(st.integers(1, 5))
            up_to = new[limit - 1] if len(new) >= limit else now.end
            taken += [each for each in new if each <= up_to]
            dealt_with = dealt_with.moved_on(now, up_to, 0)
            assert Snapshot.of(str(dealt_with)) == dealt_with
    assert len(taken) == len(set(taken))
    left = {each for each in done if each >= dealt_with.end or each in dealt_with.under_way}
    assert set(taken) | left == done
    assert set(taken) & left == set()


@committed
@pytest.mark.postgres
def test_a_process_that_is_frozen_while_it_gives_places_keeps_them_from_nobody(monkeypatch):
    """SIGSTOP leaves its connection open: the server itself ends what it holds."""
    monkeypatch.setattr("container_manager.models.connections.HELD_SECONDS", 1)
    JobFactory()
    tell, frozen, thawed = sequencing._PostgreSQL.tell, threading.Event(), threading.Event()

    def freezes(self, *arguments):
        monkeypatch.setattr(sequencing._PostgreSQL, "tell", tell)
        frozen.set()
        thawed.wait(60)
        return tell(self, *arguments)

    monkeypatch.setattr(sequencing._PostgreSQL, "tell", freezes)
    lost = []

    def slow():
        try:
            take()
        except (OperationalError, InterfaceError) as error:
            lost.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=slow)
    thread.start()
    frozen.wait(60)
    assert take() == 0
    wait_until(lambda: take() == 1, "the frozen one to lose the row")
    thawed.set()
    thread.join(60)
    assert len(lost) == 1
    assert_all_is_told_once_and_in_order()
