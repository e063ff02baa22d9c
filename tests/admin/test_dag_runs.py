"""Runs of DAGs in the admin: the list, the page of one, cancel and retry."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from container_manager.admin import dag_runs, drawing
from container_manager.models import ContainerJob, Dag, DagRun, StateHistory, TaskInstance
from container_manager.states import JobStatus, RunType, WorkflowState
from container_manager.workflows import dags, runs
from tests.admin.conftest import HOSTILE, url
from tests.factories import RunFactory, TaskFactory
from tests.workflows.driving import begun, fresh, made, play, started, states_of, task

pytestmark = pytest.mark.django_db

RUNS = "/admin/container_manager/dagrun/"
CHAIN = {"a": task(), "b": task("a"), "c": task("b")}


def at(page: str, *arguments: Any) -> str:
    return url(page, *arguments, model="dagrun")


def text(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200, address
    return unescape(answer.content.decode())


def page_of(client: Client, run: DagRun, **asked: Any) -> Any:
    answer = client.get(at("change", run.pk), asked)
    assert answer.status_code == 200
    return answer


def verbs(client: Client, run: DagRun) -> list[str]:
    return [str(each["verb"]) for each in page_of(client, run).context["buttons"]]


# The list -----------------------------------------------------------------------------------------


def test_the_list_of_runs_is_filtered_and_searched(operator: Client) -> None:
    done, failed = play(begun(CHAIN)), play(begun(CHAIN, name="other"), fails=["a"])

    def found(query: str) -> set[Any]:
        return {run.pk for run in operator.get(RUNS + query).context["cl"].result_list}

    assert found("") == {done.pk, failed.pk}
    assert found("?state=failed") == found("?q=other") == {failed.pk}
    assert found("?run_type=manual") == {done.pk, failed.pk}
    assert found("?run_type=scheduled") == set()
    assert "No run matches" in text(operator, f"{RUNS}?run_type=scheduled")
    assert operator.get(f"{RUNS}?state=nonsense").status_code in (302, 400)


def test_the_list_of_runs_asks_nothing_for_each_row(
    operator: Client, django_assert_max_num_queries: Any
) -> None:
    RunFactory.create_batch(20)
    with django_assert_max_num_queries(14):
        assert text(operator, RUNS).count("cm-name") == 20


def test_an_empty_list_says_where_runs_come_from(operator: Client) -> None:
    assert "by the button of its DAG" in text(operator, RUNS)


# The page of one ----------------------------------------------------------------------------------


def test_the_page_of_a_run_shows_graph_times_and_tasks_the_failed_ones_first(
    operator: Client,
) -> None:
    run = play(begun({**CHAIN, "d": task()}, params={"REGION": "north"}), fails=["b"])
    shown = page_of(operator, run)
    boxes = {box.node.name: (box.state, box.url) for box in shown.context["drawn"]["boxes"]}
    assert {name: state for name, (state, _) in boxes.items()} == {
        **{"a": "success", "b": "failed", "c": "upstream_failed", "d": "success"},
    }
    assert operator.get(boxes["b"][1])["Location"] == url(
        "change", TaskInstance.objects.get(name="b").pk, model="taskinstance"
    )
    assert [each["bar"].name for each in shown.context["chart"]["bars"]] == ["a", "d", "b"]
    assert [each.task_id for each in shown.context["tasks"]] == ["b", "c", "a", "d"]
    page = unescape(shown.content.decode())
    for words in ("1 of 4 tasks failed: b.", "1 task behind it never ran", "REGION", "north"):
        assert words in page
    assert at("live", run.pk) not in page


@pytest.mark.parametrize("fails", [[], ["a"]])
def test_colour_is_never_the_only_sign(operator: Client, fails: list[str]) -> None:
    page = text(operator, at("change", play(begun({"a": task()}), fails=fails).pk))
    graph = page.partition('<svg class="cm-graph"')[2].partition("</svg>")[0]
    word, sign = ("failed", "×") if fails else ("success", "✓")  # noqa: RUF001
    assert f"{sign} {word}" in graph
    assert f"<title>a: {word}" in graph


def test_an_array_is_one_box_with_its_worst_state_and_leads_to_its_tasks(operator: Client) -> None:
    run = play(begun({"many": task(array=5)}), fails=["many[3]"])
    (box,) = page_of(operator, run).context["drawn"]["boxes"]
    assert (box.state, box.told) == ("failed", "1 of 5 failed")
    assert "4 success, 1 failed" in box.title
    way = operator.get(box.url)["Location"]
    assert way == f"{at('change', run.pk)}?name=many#cm-tasks"
    tasks = page_of(operator, run, name="many", state="success").context["tasks"]
    assert [each.task_id for each in tasks] == ["many[0]", "many[1]", "many[2]", "many[4]"]


def test_a_run_of_many_tasks_is_paged_and_asks_no_more_questions(
    operator: Client, monkeypatch: pytest.MonkeyPatch, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr(dag_runs, "TASKS_ON_A_PAGE", 40)
    run = begun({"many": task(array=90), "end": task("many")})
    with django_assert_max_num_queries(16):
        first = page_of(operator, run)
    assert len(first.context["tasks"]) == 40
    assert "1 to 40 of 91" in first.content.decode()
    last = page_of(operator, run, page="3").context["tasks"]
    assert len(last) == 11
    assert page_of(operator, run, page="nonsense").context["tasks"].number == 1
    assert "page=3" in page_of(operator, run, page="3").content.decode()


def test_a_run_of_very_many_names_is_a_table_and_says_so(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "MOST_NAMES", 2)
    page = text(operator, at("change", begun(CHAIN).pk))
    assert "3 names are too many for a drawing" in page
    assert "cm-gantt" not in page.partition('class="cm-page"')[2]
    assert page.count("cm-state cm-flow-queued") >= 3


def test_a_run_that_waits_says_for_what(operator: Client) -> None:
    dag = made(CHAIN, max_active_runs=1)
    run = runs.create(dag, timezone.now(), RunType.MANUAL)
    assert "run_scheduler" in page_of(operator, run).context["why"]
    started(dag)
    waiting = DagRun.objects.get(state=WorkflowState.QUEUED)
    assert "as many as may be" in page_of(operator, waiting).context["why"]
    dags.pause(dag.pk)
    assert "paused" in page_of(operator, waiting).context["why"]


def test_the_page_follows_a_run_until_its_end(operator: Client) -> None:
    run = begun(CHAIN)
    page = page_of(operator, run)
    assert at("live", run.pk) in page.content.decode()
    seen = page.context["seen"]
    for _ in range(2):  # the chart grows every ten seconds
        answer = operator.get(at("live", run.pk), {"seen": seen})
        if answer.status_code == 204:
            break
        seen = answer.context["seen"]
    assert answer.status_code == 204
    play(run)
    ended = operator.get(at("live", run.pk), {"seen": seen, "name": "b"})
    assert [each.task_id for each in ended.context["tasks"]] == ["b"]
    assert "hx-get" not in ended.content.decode()


def test_what_a_run_says_of_itself_is_text(operator: Client) -> None:
    run = play(begun(CHAIN, params={"A": HOSTILE}), fails=["a"])
    TaskInstance.objects.filter(name="a").update(error=HOSTILE)
    TaskFactory(dag_run=run, task_id="x<b>", name="a")
    for address in (RUNS, at("change", run.pk), at("live", run.pk)):
        page = operator.get(address).content.decode()
        assert "<script>alert" not in page, address
        assert "<b>" not in page.partition('class="cm-page"')[2], address


# Verbs --------------------------------------------------------------------------------------------


def test_buttons_are_only_for_what_the_state_allows(operator: Client) -> None:
    dag = made(CHAIN)
    assert verbs(operator, runs.create(dag, timezone.now(), RunType.MANUAL)) == ["cancel"]
    run = started(dag)
    assert verbs(operator, run) == ["cancel"]
    assert verbs(operator, play(run, fails=["b"])) == ["retry"]
    assert verbs(operator, play(started(dag))) == []


def test_cancelling_asks_first_and_withdraws_the_run(operator: Client) -> None:
    run = begun(CHAIN)
    question = operator.get(at("do", run.pk, "cancel"))
    assert "Cancel this run?" in question.content.decode()
    assert fresh(run).state == "running"
    answer = operator.post(at("do", run.pk, "cancel"), follow=True)
    assert "Cancel: done; it is failed." in answer.content.decode()
    assert "Cancelled by admin:olga" in answer.context["why"]
    assert states_of(run)["b"] == "skipped"
    assert ContainerJob.objects.get().status == JobStatus.CANCELLED
    assert LogEntry.objects.get().change_message == "Cancel."


def test_retrying_goes_on_from_what_failed(operator: Client) -> None:
    run = play(begun(CHAIN), fails=["b"])
    answer = operator.post(at("do", run.pk, "retry"), follow=True)
    assert "Retry: done; it is running." in answer.content.decode()
    assert StateHistory.objects.of(run).last().actor == "admin:olga"
    assert states_of(play(run)) == dict.fromkeys("abc", "success")


def test_what_the_state_does_not_allow_is_told(operator: Client) -> None:
    run = play(begun(CHAIN))
    for verb in ("cancel", "retry"):
        page = operator.post(at("do", run.pk, verb), follow=True).content.decode()
        assert "Invalid transition" in page
    assert fresh(run).state == "success"
    assert operator.post(at("do", run.pk, "skip")).status_code == 404


# Rights -------------------------------------------------------------------------------------------


def test_who_may_only_look_moves_only_runs_of_the_own_dags(viewer: Client) -> None:
    run = begun(CHAIN)
    assert verbs(viewer, run) == []
    for verb in ("cancel", "retry"):
        assert viewer.get(at("do", run.pk, verb)).status_code == 403
        assert viewer.post(at("do", run.pk, verb)).status_code == 403
    assert fresh(run).state == "running"
    Dag.objects.update(created_by=viewer.person)  # type: ignore[attr-defined]
    assert viewer.post(at("do", run.pk, "cancel")).status_code == 302
    assert fresh(run).state == "failed"


def test_a_stranger_of_the_staff_sees_nothing(stranger: Client) -> None:
    run = begun(CHAIN)
    own = [at("change", run.pk), at("live", run.pk), at("task", run.pk, "a")]
    for address in (RUNS, *own, at("do", run.pk, "cancel")):
        assert stranger.get(address).status_code == 403, address
        assert stranger.post(address).status_code == 403, address
    assert fresh(run).state == "running"


def test_a_verb_needs_a_token_of_the_form_and_a_page_takes_no_post(operator: Client) -> None:
    run = begun(CHAIN)
    client = Client(enforce_csrf_checks=True)
    client.force_login(operator.person)  # type: ignore[attr-defined]
    assert client.post(at("do", run.pk, "cancel")).status_code == 403
    for page in ("change", "delete"):
        assert (
            operator.post(at(page, run.pk), {"state": "success", "post": "yes"}).status_code == 403
        )
    assert operator.get(f"{RUNS}add/").status_code == 403
    assert fresh(run).state == "running"


def test_what_is_not_there_is_not_found(operator: Client) -> None:
    run = begun(CHAIN)
    assert operator.get(at("task", run.pk, "nonesuch")).status_code == 404
    for address in (at("live", run.dag_id), at("do", run.dag_id, "cancel")):
        assert operator.post(address).status_code == 404
