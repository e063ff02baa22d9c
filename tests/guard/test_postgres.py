"""The side doors of PostgreSQL."""

from __future__ import annotations

import pytest
from django.db import connection, transaction

from container_manager.models import ContainerJob, StateHistory
from tests.factories import JobFactory, TrialFactory
from tests.guard.test_triggers import columns, refused
from tests.models.ways import execute, raw_id, stored, told

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]


def upsert(job, action):
    names = ", ".join(columns(job))
    execute(
        f"INSERT INTO container_jobs ({names}) SELECT {names} FROM container_jobs"
        f" WHERE id = %s ON CONFLICT (id) {action}",
        [raw_id(job)],
    )


def test_an_upsert_moves_only_along_the_table():
    job = JobFactory()
    with refused("Invalid status transition: pending -> completed"):
        upsert(job, "DO UPDATE SET status = 'completed', version = container_jobs.version + 1")
    upsert(job, "DO NOTHING")
    assert len(told(job)) == 1
    upsert(
        job,
        "DO UPDATE SET status = 'queued', queued_at = now(), version = container_jobs.version + 1",
    )
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]


def test_merge_moves_only_along_the_table():
    job = JobFactory()
    merge = (
        "MERGE INTO container_jobs j USING (SELECT id FROM container_jobs) s ON s.id = j.id"
        " WHEN MATCHED THEN UPDATE SET version = version + 1, queued_at = now(), status = "
    )
    with refused("Invalid status transition"):
        execute(f"{merge} 'completed'")
    execute(f"{merge} 'queued'")
    assert told(job) == [(None, "pending", 1), ("pending", "queued", 2)]


@pytest.mark.parametrize(
    "truncate",
    [
        "state_history",
        "state_history CASCADE",
        "container_jobs CASCADE",
        "container_jobs, job_attempts, job_logs",
        "auth_user CASCADE",
        "trials",
    ],
)
def test_truncate_is_refused(truncate):
    JobFactory(), TrialFactory()
    execute("SET CONSTRAINTS ALL IMMEDIATE")
    with refused("append-only|TRUNCATE"):
        execute(f"TRUNCATE {truncate}")
    assert (ContainerJob.objects.count(), StateHistory.objects.count()) == (1, 2)


def test_a_temporary_table_of_the_same_name_cannot_capture_history():
    job = JobFactory()
    execute("CREATE TEMP TABLE state_history (LIKE public.state_history) ON COMMIT DROP")
    execute("UPDATE container_jobs SET status = 'queued', queued_at = now(), version = 2")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM public.state_history")
        assert cursor.fetchone() == (2,)
        cursor.execute("SELECT count(*) FROM pg_temp.state_history")
        assert cursor.fetchone() == (0,)
        cursor.execute("DROP TABLE pg_temp.state_history")
    assert len(told(job)) == 2


def test_a_search_path_of_the_client_does_not_mislead_the_guard():
    job = JobFactory()
    execute("CREATE SCHEMA elsewhere")
    execute(
        "CREATE FUNCTION elsewhere.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
        " AS $$ SELECT '1999-01-01'::timestamptz $$"
    )
    execute("SET LOCAL search_path = elsewhere, pg_catalog, public")
    execute("UPDATE public.container_jobs SET status = 'queued', queued_at = now(), version = 2")
    execute("SET LOCAL search_path = public")
    assert StateHistory.objects.of(job).last().changed_at.year > 2000


def test_history_cannot_be_forged_through_a_trigger_of_a_temporary_table():
    job = JobFactory()
    execute("CREATE TEMP TABLE door (id uuid) ON COMMIT DROP")
    names = "id, entity_type, entity_id, new_state, version, actor, reason, metadata, changed_at"
    execute(
        "CREATE FUNCTION pg_temp.forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" INSERT INTO public.state_history ({names}, commit_order) VALUES (gen_random_uuid(),"
        " 'job', NEW.id, 'completed', 2, 'forger', '', '{}', now(), 1); RETURN NEW; END $$"
    )
    execute(
        "CREATE TRIGGER forge AFTER INSERT ON pg_temp.door FOR EACH ROW"
        " EXECUTE FUNCTION pg_temp.forge()"
    )
    with refused("not what the entity says"):
        execute("INSERT INTO pg_temp.door VALUES (%s)", [job.pk])
    assert len(told(job)) == 1


def test_a_refusal_names_the_table_the_trigger_and_the_move():
    job = JobFactory()
    with pytest.raises(Exception, match="pending -> completed") as refusal, transaction.atomic():
        execute("UPDATE container_jobs SET status = 'completed', version = version + 1")
    details = refusal.value.__cause__.diag
    assert details.sqlstate == "23514"
    assert details.table_name == "container_jobs"
    assert details.constraint_name == "cm_guard_update_container_jobs"
    assert stored(job)["status"] == "pending"


def test_the_history_names_the_role_that_acts():
    execute("CREATE ROLE somebody")
    execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO somebody")
    job = JobFactory()
    execute("SET LOCAL ROLE somebody")
    execute("UPDATE container_jobs SET status = 'queued', queued_at = now(), version = 2")
    execute("RESET ROLE")
    assert StateHistory.objects.of(job).last().actor == "db:somebody"


def test_a_later_move_in_the_same_transaction_has_a_later_time():
    job = JobFactory()
    job.transition_to("queued")
    job.transition_to("running")
    times = [row.changed_at for row in StateHistory.objects.of(job)]
    assert times[0] < times[1] < times[2]
