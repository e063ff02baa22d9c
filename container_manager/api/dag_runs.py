"""`/dag-runs/`: a list, one by itself, its verbs, its records."""

from __future__ import annotations

from functools import partial
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
from container_manager.api.job_records import WORKFLOW_MOVE, moves_of
from container_manager.api.operations import NO_BODY, component, operation
from container_manager.api.pagination import PAGE, page_of, page_of_rows
from container_manager.api.workflow_fields import RUNS, tell_graph, tell_row, tell_run
from container_manager.api.workflow_query import (
    RUN_FILTERS,
    RUN_ORDERING,
    page_of_selected,
    select_runs,
)
from container_manager.api.workflow_schemas import GRAPH, LISTED_RUN, ONE_RUN
from container_manager.models import DagRun
from container_manager.workflows import runs

a_verb = partial(operation, body=NO_BODY, body_required=False, problems=(409,))
"""What the verbs of runs and tasks have in common."""

HISTORY = component("WorkflowMovePage", page_of(WORKFLOW_MOVE))


class DagRunViewSet(BaseViewSet):
    """Runs of DAGs that this person may see."""

    tag = "dag-runs"
    lookup_value_regex = "[^/]+"

    @operation(
        "List runs",
        query=(*PAGE, *RUN_FILTERS, RUN_ORDERING),
        answers={200: component("DagRunPage", page_of(LISTED_RUN))},
    )
    def list(self, request: Request) -> Response:
        """Those of the latest execution date first."""
        selected = select_runs(request.user, self.query)
        return page_of_selected(
            request, self.query, selected, RUNS, tell_row, usual=["-execution_date"]
        )

    @operation("Show a run", answers={200: ONE_RUN})
    def retrieve(self, request: Request, pk: str) -> Response:
        """With how many of its tasks stand where."""
        return Response(tell_run(find(request, pk, RUNS)))

    # Its verbs

    @a_verb("Retry a run", answers={200: ONE_RUN})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Goes on with a failed run from its failed tasks; what is done is kept."""
        run = _changeable(request, pk)
        runs.retry(run.pk, actor=actor(request))
        return _answer(run)

    @a_verb("Cancel a run", answers={200: ONE_RUN, 202: ONE_RUN})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """What waits is skipped, what runs is asked to stop: 202 until that is gone."""
        run = _changeable(request, pk)
        came = runs.cancel(run.pk, actor=actor(request))
        return _answer(run, 200 if came.state in states.OVER else 202)

    # Its records

    @operation("Show the graph of a run", answers={200: GRAPH})
    @action(detail=True)
    def graph(self, request: Request, pk: str) -> Response:
        """Its tasks by name, an array as one, with what waits for what and where they stand."""
        return Response(tell_graph(find(request, pk, DagRun.objects.defer("spec"))))

    @operation("Show the history of a run", query=PAGE, answers={200: HISTORY})
    @action(detail=True)
    def history(self, request: Request, pk: str) -> Response:
        """Every move it made, newest first."""
        run = find(request, pk, DagRun.objects.only("pk"))
        return Response(page_of_rows(request, self.query, moves_of(run)))


def _changeable(request: Request, pk: str) -> DagRun:
    """The run, if this person may also move it; the verbs take no body. Raises Problem."""
    runs_of_dags = DagRun.objects.select_related("dag").defer("spec", "dag__spec")
    run: DagRun = find(request, pk, runs_of_dags)
    refuse_unless_changeable(request, run.dag)
    read_object(request.data, {})
    return run


def _answer(run: Any, status: int = 200) -> Response:
    return Response(tell_run(RUNS.get(pk=run.pk)), status)
