"""`/task-instances/`: a list, one by itself, its verbs, its history."""

from __future__ import annotations

from typing import Any

from rest_framework.decorators import action
from rest_framework.request import Request

from container_manager import states
from container_manager.api.base import (
    BaseViewSet,
    Response,
    actor,
    find,
    refuse_unless_changeable,
)
from container_manager.api.bodies import read_object
from container_manager.api.dag_runs import HISTORY, a_verb
from container_manager.api.job_records import moves_of
from container_manager.api.operations import component, operation
from container_manager.api.pagination import PAGE, page_of, page_of_rows
from container_manager.api.workflow_fields import TASKS, tell_task
from container_manager.api.workflow_query import (
    IN_ORDER,
    TASK_FILTERS,
    TASK_ORDERING,
    page_of_selected,
    select_tasks,
)
from container_manager.api.workflow_schemas import TASK
from container_manager.models import TaskInstance
from container_manager.workflows import runs


class TaskInstanceViewSet(BaseViewSet):
    """Tasks of runs that this person may see."""

    tag = "task-instances"
    lookup_value_regex = "[^/]+"

    @operation(
        "List tasks",
        query=(*PAGE, *TASK_FILTERS, TASK_ORDERING),
        answers={200: component("TaskInstancePage", page_of(TASK))},
    )
    def list(self, request: Request) -> Response:
        """Newest first; those of one run (`dag_run`) in the order of its document."""
        selected = select_tasks(request.user, self.query)
        usual = IN_ORDER if self.query["dag_run"] else ["-created_at"]
        return page_of_selected(request, self.query, selected, TASKS, tell_task, usual)

    @operation("Show a task", answers={200: TASK})
    def retrieve(self, request: Request, pk: str) -> Response:
        """With the id of its job, once that is queued: its log is its job's."""
        return Response(tell_task(find(request, pk, TASKS)))

    # Its verbs

    @a_verb("Retry a task", answers={200: TASK})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """A failed one runs again, and those behind it that never ran for its failure."""
        task = _changeable(request, pk)
        runs.retry_task(task.pk, actor=actor(request))
        return _answer(task)

    @a_verb("Cancel a task", answers={200: TASK, 202: TASK})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Its job is withdrawn, and it is `failed`: 202 while what runs is being stopped."""
        task = _changeable(request, pk)
        came = runs.cancel_task(task.pk, actor=actor(request))
        return _answer(task, 200 if came.state in states.OVER else 202)

    @a_verb("Skip a task", answers={200: TASK})
    @action(detail=True, methods=["post"])
    def skip(self, request: Request, pk: str) -> Response:
        """One that has not begun never runs; those behind it see it as `skipped`."""
        task = _changeable(request, pk)
        runs.skip_task(task.pk, actor=actor(request))
        return _answer(task)

    # Its records

    @operation("Show the history of a task", query=PAGE, answers={200: HISTORY})
    @action(detail=True)
    def history(self, request: Request, pk: str) -> Response:
        """Every move it made, newest first."""
        task = find(request, pk, TaskInstance.objects.only("pk"))
        return Response(page_of_rows(request, self.query, moves_of(task)))


def _changeable(request: Request, pk: str) -> TaskInstance:
    """The task, if this person may also move it; the verbs take no body. Raises Problem."""
    of_runs = TaskInstance.objects.select_related("dag_run__dag")
    task: TaskInstance = find(request, pk, of_runs.defer("dag_run__spec", "dag_run__dag__spec"))
    refuse_unless_changeable(request, task.dag_run.dag)
    read_object(request.data, {})
    return task


def _answer(task: Any, status: int = 200) -> Response:
    return Response(tell_task(TASKS.get(pk=task.pk)), status)
