"""DAGs in the admin: the list, the page of one, writing, triggering, backfilling, deleting."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from container_manager.admin import dag_page, drawing
from container_manager.admin import dags as dag_pages
from container_manager.models import ContainerJob, Dag, DagRun, StateHistory
from container_manager.models.validators import MASK
from container_manager.states import RunType, WorkflowState
from container_manager.workflows import dags, runs
from tests.admin.conftest import HOSTILE, url
from tests.factories import DagFactory, RunFactory
from tests.workflows.driving import advance, begun, end, made, play, started, task

pytestmark = pytest.mark.django_db

DAGS = "/admin/container_manager/dag/"
Person = Callable[..., Client]
CHAIN = {"a": task(), "b": task("a")}

DOCUMENT = """\
name: written
schedule: "0 2 * * *"
params: {REGION: north}
defaults: {executor: process, environment: {TOKEN: secret}}
tasks:
  one: {command: ["/bin/true"]}
  two: {command: ["/bin/true"], depends_on: [one]}
"""


def at(page: str, *arguments: Any) -> str:
    return url(page, *arguments, model="dag")


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, address
    return unescape(answer.content.decode())


def owned(dag: Dag, client: Client) -> Dag:
    Dag.objects.filter(pk=dag.pk).update(created_by=client.person)  # type: ignore[attr-defined]
    return dag


def squares(page: str) -> list[str]:
    return re.findall(r'<a class="cm-square cm-flow-(\w+)"', page)


# The list -----------------------------------------------------------------------------------------


def test_an_empty_list_proposes_an_example_that_one_click_imports(operator: Client) -> None:
    page = operator.get(DAGS).content.decode()
    assert "There is no DAG yet" in page
    example = unescape(
        re.findall(r'<textarea name="document" hidden>(.*?)</textarea>', page, re.S)[0]
    )
    answer = operator.post(at("add"), {"document": example})
    dag = Dag.objects.get()
    assert answer["Location"] == at("change", dag.pk)
    assert dag.name == "example"
    assert dag.created_by == operator.person  # type: ignore[attr-defined]
    assert list(dag.spec["tasks"]) == ["extract", "transform", "notify"]


def test_the_next_example_has_a_name_that_is_free(operator: Client) -> None:
    DagFactory(name="example")
    DagFactory(name="example-2")
    assert "name: example-3" in text(operator, at("add"))


def test_the_list_tells_when_a_dag_runs_and_how_it_went(operator: Client) -> None:
    dag = made(CHAIN, schedule="30 2 * * *", timezone="Europe/Berlin", tags={"team": "data"})
    play(started(dag))
    play(started(dag), fails=["a"])
    page = text(operator, DAGS)
    for words in ("30 2 * * *", "At 02:30 every day", "Europe/Berlin", "team=data", "data-cm-ago"):
        assert words in page
    assert squares(page) == ["success", "failed"]
    latest = DagRun.objects.get_latest_run(dag)
    assert url("change", latest.pk, model="dagrun") in page
    assert f"failed · {latest.execution_date:%Y-%m-%d}" in page


def test_a_slot_that_nobody_takes_is_told(operator: Client) -> None:
    dag = made(CHAIN, schedule="@daily")
    assert "does a scheduler run?" not in text(operator, DAGS)
    late = timezone.now() - timedelta(minutes=5)
    Dag.objects.update(next_slot_at=late)
    for address in (DAGS, at("change", dag.pk)):
        assert "does a scheduler run?" in text(operator, address)
    dags.pause(dag.pk)
    assert "does a scheduler run?" not in text(operator, DAGS)


def test_of_many_runs_the_list_shows_the_latest(operator: Client) -> None:
    one, other = DagFactory(), DagFactory()
    now = timezone.now()
    for hours in range(15):
        RunFactory(dag=one, execution_date=now - timedelta(hours=hours))
    RunFactory(dag=other, execution_date=now - timedelta(days=400))
    listed = operator.get(DAGS).context["cl"].result_list
    latest = {dag.pk: [run.execution_date for run in dag.latest] for dag in listed}
    assert latest[one.pk] == [now - timedelta(hours=hours) for hours in reversed(range(12))]
    assert len(latest[other.pk]) == 1


def test_the_list_asks_nothing_for_each_row(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    for _ in range(20):
        RunFactory.create_batch(2, dag=made(CHAIN, name=f"dag-{_}", schedule="@daily"))
    with django_assert_max_num_queries(20):
        assert len(squares(text(operator, DAGS))) == 40


def test_the_list_is_filtered_and_searched(operator: Client) -> None:
    made(CHAIN, name="one", tags={"team": "data"}, description="Imports orders")
    dags.pause(made(CHAIN, name="two", tags={"team": "web"}).pk)

    def found(query: str) -> set[str]:
        return {dag.name for dag in operator.get(DAGS + query).context["cl"].result_list}

    assert found("?paused=yes") == {"two"}
    assert found("?paused=no") == {"one"}
    assert found("?tag=team%3Ddata") == {"one"}
    assert found("?tag=gone%3Dtag") == set()
    assert found("?owner=me") == set()
    assert found("?q=tw") == found("?q=team%3Dweb") == {"two"}
    assert found("?q=orders") == {"one"}
    for refused in ("?paused=nonsense", "?created_by__password__startswith=a"):
        assert operator.get(DAGS + refused).status_code in (302, 400)


def test_the_switch_of_the_list_pauses_and_unpauses(operator: Client) -> None:
    dag = made(CHAIN)
    address = re.findall(r'aria-checked="true"[^>]*formaction="([^"]+)"', text(operator, DAGS))[0]
    answer = operator.post(address, {"ids": str(dag.pk), "action": "", "csrf": "x"})
    assert answer["Location"] == DAGS
    assert Dag.objects.get().is_paused
    address = re.findall(r'aria-checked="false"[^>]*formaction="([^"]+)"', text(operator, DAGS))[0]
    operator.post(address, {"ids": str(dag.pk)})
    assert not Dag.objects.get().is_paused


# Many at once -------------------------------------------------------------------------------------


def choose(client: Client, action: str, *chosen: Dag) -> Any:
    return client.post(DAGS, {"action": action, "_selected_action": [dag.pk for dag in chosen]})


def test_an_action_asks_first_and_tells_what_came_of_each(operator: Client) -> None:
    one, two = made(CHAIN, name="one"), made(CHAIN, name="two")
    dags.pause(two.pk)
    question = choose(operator, "trigger_dags", one, two)
    assert [dag.name for dag in question.context["able"]] == ["one"]
    assert [dag.name for dag in question.context["others"]] == ["two"]
    assert not DagRun.objects.exists()
    both = {"ids": f"{one.pk},{two.pk}"}
    results = operator.post(at("do", "trigger"), both).context["results"]
    assert [(each.dag.name, each.good) for each in results] == [("one", True), ("two", False)]
    assert "paused" in results[1].detail
    assert DagRun.objects.get().dag == one
    assert StateHistory.objects.of(DagRun.objects.get()).first().actor == "admin:olga"


@pytest.mark.parametrize("verb", ["pause", "unpause"])
def test_many_are_paused_and_unpaused(operator: Client, verb: str) -> None:
    chosen = [made(CHAIN, name=name) for name in ("one", "two")]
    Dag.objects.update(is_paused=verb == "unpause")
    question = choose(operator, f"{verb}_dags", *chosen)
    assert len(question.context["able"]) == 2
    assert operator.post(at("do", verb), question.context["fields"]).status_code == 200
    assert set(Dag.objects.values_list("is_paused", flat=True)) == {verb == "pause"}
    assert LogEntry.objects.count() == 2


def test_a_get_changes_nothing_and_there_are_no_other_verbs(operator: Client) -> None:
    dag = made(CHAIN)
    assert operator.get(at("do", "pause"), {"ids": dag.pk}).status_code == 403
    assert operator.post(at("do", "delete"), {"ids": dag.pk}).status_code == 404
    assert operator.post(at("do", "pause"), {"ids": "nonsense"}).status_code == 400
    assert operator.post(at("do", "pause")).status_code == 404
    assert not Dag.objects.get().is_paused


# The page of one ----------------------------------------------------------------------------------


def test_the_page_of_a_dag_shows_its_runs_as_a_grid(operator: Client) -> None:
    dag = made({"a": task(), "many": task("a", array=3), "end": task("many")}, schedule="@daily")
    play(started(dag))
    play(started(dag), fails=["many[1]"])
    answer = operator.get(at("change", dag.pk))
    rows = {row["name"]: row["cells"] for row in answer.context["rows"]}
    states = {name: [cell["state"] for cell in cells] for name, cells in rows.items()}
    assert states == {
        "a": ["success", "success"],
        "many": ["success", "failed"],
        "end": ["success", "upstream_failed"],
    }
    assert "2 success, 1 failed" in rows["many"][1]["title"]
    assert len(answer.context["then"]) == 4
    assert "The next run is due" in answer.content.decode()
    assert answer.content.decode().count("cm-node-name") == 3


def test_a_task_that_an_older_run_did_not_have_is_a_gap(operator: Client) -> None:
    dag = made({"a": task()})
    play(started(dag))
    made(CHAIN)
    play(started(dag))
    rows = operator.get(at("change", dag.pk)).context["rows"]
    assert [cell and cell["state"] for cell in rows[1]["cells"]] == [None, "success"]


def test_the_grid_costs_no_query_for_each_run(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    dag = made(CHAIN)
    for _ in range(10):
        runs.create(dag, timezone.now(), RunType.MANUAL)
    with django_assert_max_num_queries(15):
        assert len(squares(text(operator, at("change", dag.pk)))) == 30


def test_the_page_follows_and_says_nothing_while_nothing_changes(operator: Client) -> None:
    dag = made(CHAIN)
    seen = operator.get(at("change", dag.pk)).context["seen"]
    live = at("live", dag.pk)
    assert operator.get(live, {"seen": seen}).status_code == 204
    run = started(dag)
    answer = operator.get(live, {"seen": seen})
    assert squares(answer.content.decode())[:3] == ["running", "queued", "queued"]
    seen = answer.context["seen"]
    assert operator.get(live, {"seen": seen}).status_code == 204
    end(run, "a")
    advance(run)
    answer = operator.get(live, {"seen": seen})
    assert squares(answer.content.decode())[:3] == ["running", "success", "queued"]


def test_a_dag_of_very_many_tasks_says_so_instead_of_drawing(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MOST_NAMES", 1)
    monkeypatch.setattr(dag_page, "ROWS_IN_GRID", 1)
    dag = made(CHAIN)
    started(dag)
    page = text(operator, at("change", dag.pk))
    assert "2 names are too many" in page
    assert "1 more tasks are not shown" in page
    assert '<svg class="cm-graph"' not in page
    assert "cm-document" in page


def test_what_a_dag_says_of_itself_is_text(operator: Client) -> None:
    dag = made(CHAIN, description=HOSTILE, tags={"team": HOSTILE}, params={"A": HOSTILE})
    started(dag)
    for address in (DAGS, at("change", dag.pk), at("edit", dag.pk), at("trigger", dag.pk)):
        page = operator.get(address).content.decode()
        assert "<script>alert" not in page, address
        assert "<img src=x" not in page, address
    plain = operator.get(at("document", dag.pk))
    assert plain["Content-Type"].startswith("text/plain")


def test_values_of_environments_are_never_shown(operator: Client) -> None:
    operator.post(at("add"), {"document": DOCUMENT})
    dag = Dag.objects.get()
    for page in ("change", "edit", "document"):
        shown = text(operator, at(page, dag.pk))
        assert "TOKEN" in shown
        assert "secret" not in shown


# Writing ------------------------------------------------------------------------------------------


def test_a_document_becomes_a_dag(operator: Client) -> None:
    operator.post(at("add"), {"document": DOCUMENT.replace("\n", "\r\n")})
    dag = Dag.objects.get()
    assert (dag.name, dag.schedule, list(dag.spec["tasks"])) == (
        "written",
        "0 2 * * *",
        ["one", "two"],
    )
    assert LogEntry.objects.get().change_message == "Created."


@pytest.mark.parametrize(
    ("document", "line", "path"),
    [
        (DOCUMENT.replace("[one]", "[onne]"), 7, "tasks.two.depends_on[0]"),
        (DOCUMENT.replace("0 2 *", "99 2 *"), 2, "schedule"),
        ("name: [", 2, ""),
        ("name: x\nstatus: running\ntasks: {a: {}}", 2, "status"),
    ],
)
def test_mistakes_are_told_with_their_line_and_nothing_is_written(
    operator: Client, document: str, line: int, path: str
) -> None:
    answer = operator.post(at("add"), {"document": document})
    assert (line, path) in [(each.line, each.path) for each in answer.context["form"].problems]
    page = answer.content.decode()
    assert f'data-cm-line="{line}"' in page
    assert "nothing was saved" in page
    assert not Dag.objects.exists()


def test_a_name_that_is_taken_is_told(operator: Client) -> None:
    made(CHAIN, name="written")
    answer = operator.post(at("add"), {"document": DOCUMENT})
    assert "already" in answer.context["form"].problems[0].message
    assert Dag.objects.count() == 1


def test_an_empty_document_is_told(operator: Client) -> None:
    assert "This field is required" in operator.post(at("add"), {"document": ""}).content.decode()


def initial(client: Client, dag: Dag) -> dict[str, str]:
    form = client.get(at("edit", dag.pk)).context["form"]
    return {name: form.get_initial_for_field(form.fields[name], name) for name in form.fields}


def test_editing_keeps_what_is_not_shown_and_changes_the_rest(operator: Client) -> None:
    operator.post(at("add"), {"document": DOCUMENT})
    dag = Dag.objects.get()
    given = initial(operator, dag)
    assert MASK in given["document"]
    given["document"] = given["document"].replace("0 2", "0 3")
    assert operator.post(at("edit", dag.pk), given)["Location"] == at("change", dag.pk)
    dag.refresh_from_db()
    assert dag.schedule == "0 3 * * *"
    assert dag.spec["defaults"]["environment"] == {"TOKEN": "secret"}


def test_of_two_who_edit_at_once_the_second_is_told(operator: Client) -> None:
    dag = made(CHAIN)
    given = initial(operator, dag)
    dags.pause(dag.pk)
    answer = operator.post(at("edit", dag.pk), given)
    assert "It has changed meanwhile" in answer.content.decode()


def test_a_mask_with_nothing_behind_it_is_refused(operator: Client) -> None:
    operator.post(at("add"), {"document": DOCUMENT.replace("secret", f'"{MASK}"')})
    assert not Dag.objects.exists()


# Triggering ---------------------------------------------------------------------------------------


def test_a_trigger_asks_for_the_parameters_of_the_document(operator: Client) -> None:
    dag = made(CHAIN, params={"REGION": "north", "DAY": "monday"})
    form = operator.get(at("trigger", dag.pk)).context["form"]
    assert [(field.label, field.initial) for field in form.param_fields] == [
        *(("REGION", "north"), ("DAY", "monday")),
    ]
    given = {"param_0": "south", "param_1": "monday", "execution_date": "2026-03-01T12:00:00"}
    answer = operator.post(at("trigger", dag.pk), given)
    run = DagRun.objects.get()
    assert answer["Location"] == url("change", run.pk, model="dagrun")
    assert run.params == {"REGION": "south", "DAY": "monday"}
    assert run.execution_date.isoformat() == "2026-03-01T12:00:00+00:00"
    assert StateHistory.objects.of(run).first().actor == "admin:olga"


def test_a_trigger_that_is_sent_twice_makes_one_run(operator: Client) -> None:
    dag = made(CHAIN)
    first, second = (operator.post(at("trigger", dag.pk), {"once": "x" * 32}) for _ in range(2))
    assert first["Location"] == second["Location"]
    assert DagRun.objects.count() == 1
    operator.post(at("trigger", dag.pk), {"once": "y" * 32})
    assert DagRun.objects.count() == 2


def test_a_trigger_that_is_refused_says_why(operator: Client) -> None:
    dag = made(CHAIN)
    day = {"execution_date": "2026-03-01T12:00:00"}
    operator.post(at("trigger", dag.pk), day)
    assert "has a run" in operator.post(at("trigger", dag.pk), day).content.decode()
    dags.pause(dag.pk)
    page = operator.post(at("trigger", dag.pk), {}).content.decode()
    assert "unpause it first" in page
    bad = operator.post(at("trigger", dag.pk), {"execution_date": "2026-02-30T12:00:00"})
    assert bad.context["form"].errors["execution_date"]
    assert DagRun.objects.count() == 1


# Backfilling --------------------------------------------------------------------------------------


def test_a_backfill_shows_the_slots_before_it_makes_their_runs(operator: Client) -> None:
    dag = made(CHAIN, schedule="@daily")
    there = runs.create(dag, timezone.datetime.fromisoformat("2026-03-02T00:00Z"), RunType.MANUAL)
    stretch = {"first": "2026-03-01T00:00:00", "last": "2026-03-04T00:00:00"}
    shown = operator.post(at("backfill", dag.pk), stretch)
    assert [slot["run"] for slot in shown.context["slots"]] == [None, there, None, None]
    assert "Make 3 runs" in shown.content.decode()
    assert DagRun.objects.count() == 1
    answer = operator.post(at("backfill", dag.pk), {**stretch, "sure": "1"})
    assert answer["Location"] == at("change", dag.pk)
    assert DagRun.objects.filter(run_type=RunType.BACKFILL).count() == 3


def test_a_backfill_that_is_refused_says_why(operator: Client) -> None:
    dag = made(CHAIN, schedule="@daily")
    backwards = {"first": "2026-03-04T00:00:00", "last": "2026-03-01T00:00:00"}
    answer = operator.post(at("backfill", dag.pk), {**backwards, "sure": "1"})
    assert "first" in answer.context["form"].errors
    no_schedule = made(CHAIN, name="by-hand")
    page = operator.post(at("backfill", no_schedule.pk), backwards).content.decode()
    assert "no schedule" in page
    dags.pause(dag.pk)
    forwards = {"first": "2026-03-01T00:00:00", "last": "2026-03-02T00:00:00", "sure": "1"}
    assert "paused" in operator.post(at("backfill", dag.pk), forwards).content.decode()
    assert operator.post(at("backfill", dag.pk), {}).context["form"].errors
    assert not DagRun.objects.exists()


# Deleting -----------------------------------------------------------------------------------------


def test_deleting_asks_and_takes_everything_along(operator: Client) -> None:
    run = play(begun(CHAIN))
    question = operator.get(at("delete", run.dag_id))
    assert "1 run and 2 tasks" in question.content.decode()
    assert Dag.objects.exists()
    answer = operator.post(at("delete", run.dag_id), question.context["fields"])
    assert answer["Location"] == DAGS
    for left in (Dag, DagRun, ContainerJob):
        assert not left.objects.exists()


def test_deleting_is_refused_while_a_run_is_under_way(operator: Client) -> None:
    run = begun(CHAIN)
    page = operator.post(at("delete", run.dag_id), follow=True).content.decode()
    assert "runs under way" in page
    assert Dag.objects.exists()


def test_deleting_what_has_changed_meanwhile_is_refused(operator: Client) -> None:
    dag = made(CHAIN)
    fields = operator.get(at("delete", dag.pk)).context["fields"]
    dags.pause(dag.pk)
    assert (
        "changed meanwhile"
        in operator.post(at("delete", dag.pk), fields, follow=True).content.decode()
    )
    assert Dag.objects.exists()


# Rights -------------------------------------------------------------------------------------------


READ = ("change", "live", "document")
WRITE = ("edit", "trigger", "backfill", "delete")


def test_who_may_only_look_sees_everything_and_changes_nothing(viewer: Client) -> None:
    dag = made(CHAIN, schedule="@daily")
    for page in READ:
        assert viewer.get(at(page, dag.pk)).status_code in (200, 204), page
    for page in WRITE:
        for answer in (viewer.get(at(page, dag.pk)), viewer.post(at(page, dag.pk), {})):
            assert answer.status_code == 403, page
    for verb in dag_pages.DagVerb:
        assert viewer.post(at("do", verb), {"ids": dag.pk}).status_code == 403
        choose(viewer, f"{verb}_dags", dag)
    assert viewer.post(at("add"), {"document": DOCUMENT}).status_code == 403
    for address in (DAGS, at("change", dag.pk)):
        page = text(viewer, address)
        for way in ("cm-do-", "/edit/", "/delete/", "/dag/add/", "formaction", "pause_dags"):
            assert way not in page, (address, way)
    assert Dag.objects.count() == 1
    assert not Dag.objects.get().is_paused
    assert not DagRun.objects.exists()


def test_who_may_only_look_changes_the_own_and_no_other(viewer: Client) -> None:
    own, other = owned(made(CHAIN, name="own"), viewer), made(CHAIN, name="other")
    assert viewer.post(at("do", "pause"), {"ids": own.pk}).status_code == 200
    assert viewer.post(at("do", "pause"), {"ids": f"{own.pk},{other.pk}"}).status_code == 403
    assert set(Dag.objects.filter(is_paused=True)) == {own}
    assert viewer.get(at("edit", own.pk)).status_code == 200
    assert text(viewer, DAGS).count("formaction") == 1


def test_a_stranger_of_the_staff_sees_nothing(stranger: Client) -> None:
    dag = owned(made(CHAIN, name="hidden"), stranger)
    for address in [DAGS, at("add"), *(at(page, dag.pk) for page in (*READ, *WRITE))]:
        assert stranger.get(address).status_code == 403, address
        assert stranger.post(address, {}).status_code == 403, address
    assert stranger.post(at("do", "pause"), {"ids": dag.pk}).status_code == 403


def test_every_change_needs_a_token_of_the_form(person: Person) -> None:
    known = person("olga", "operate_containerjob").person  # type: ignore[attr-defined]
    client = Client(enforce_csrf_checks=True)
    client.force_login(known)
    dag = made(CHAIN)
    for address in (at("do", "pause"), *(at(page, dag.pk) for page in WRITE), at("add")):
        assert client.post(address, {"ids": dag.pk}).status_code == 403


def test_what_is_not_there_is_not_found(operator: Client) -> None:
    run = RunFactory(state=WorkflowState.SUCCESS)
    for page in (*READ[1:], *WRITE):
        assert operator.get(at(page, run.pk)).status_code == 404, page
    assert operator.get(at("change", run.pk)).status_code == 302
    assert operator.get(f"{DAGS}nonsense/delete/").status_code == 404
