"""`/dags/`: a list, a new one, one by itself, its verbs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from django.urls import reverse
from rest_framework.decorators import action
from rest_framework.request import Request

from container_manager.api import idempotency, preconditions
from container_manager.api.base import (
    BaseViewSet,
    JSONRenderer,
    Response,
    actor,
    find,
    refuse_unless_changeable,
)
from container_manager.api.bodies import read_object
from container_manager.api.errors import Problem, invalid
from container_manager.api.operations import NO_BODY, Header, component, operation
from container_manager.api.pagination import PAGE, page_of
from container_manager.api.parsing import MEDIA_TYPE, YAML, read_document
from container_manager.api.preconditions import etag
from container_manager.api.workflow_fields import (
    DAGS,
    RUNS,
    tell_dag,
    tell_dag_row,
    tell_run,
    tell_slot,
)
from container_manager.api.workflow_query import (
    DAG_FILTERS,
    DAG_ORDERING,
    page_of_selected,
    select_dags,
)
from container_manager.api.workflow_schemas import (
    BACKFILLED,
    DAG_CHANGES,
    DAG_DOCUMENT,
    LISTED_DAG,
    ONE_DAG,
    ONE_RUN,
    PAUSED,
    STRETCH,
    STRETCH_FIELDS,
    TRIGGERING,
    TRIGGERING_FIELDS,
)
from container_manager.models import Dag
from container_manager.workflows import dags
from container_manager.workflows.masking import unmasked
from container_manager.workflows.spec import DagSpec, validate

AGAIN = {200: "This `Idempotency-Key` was used before: the answer it got then."}


def location(what: str) -> Header:
    """Where that is which was made."""
    schema = {"type": "string", "format": "uri-reference"}
    return Header("Location", schema, f"The {what}.", statuses=(200, 201))


a_change = partial(
    operation,
    answers={200: ONE_DAG},
    headers=(preconditions.DAG_IF_MATCH, preconditions.DAG_ETAG_OF_200),
    problems=(409, 412),
)
"""What the changes of one DAG have in common."""


class DagViewSet(BaseViewSet):
    """DAGs that this person may see."""

    tag = "dags"
    lookup_value_regex = "[^/]+"
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]

    # All of them

    @operation(
        "List DAGs",
        query=(*PAGE, *DAG_FILTERS, DAG_ORDERING),
        answers={200: component("DagPage", page_of(LISTED_DAG))},
    )
    def list(self, request: Request) -> Response:
        """Newest first. People see their own DAGs, operators all. Rows leave out the document."""
        selected = select_dags(request.user, self.query)
        return page_of_selected(
            request, self.query, selected, DAGS, tell_dag_row, usual=["-created_at"]
        )

    @operation(
        "Create a DAG",
        body=DAG_DOCUMENT,
        body_types=(MEDIA_TYPE, YAML),
        answers={201: ONE_DAG, 200: ONE_DAG},
        problems=(409, 422),
        headers=(idempotency.HEADER, location("DAG"), preconditions.DAG_ETAG_OF_CREATED),
        meanings=AGAIN,
    )
    def create(self, request: Request) -> Response:
        """Of its document, in JSON or YAML. All mistakes are told, each with its path."""
        document, text = read_document(request)

        def made() -> str:
            dag = dags.create(validate(document, text), owner=request.user)
            return _as_text(tell_dag(dag))

        kept, first = idempotency.once(request, "POST dags", made)
        told = json.loads(kept)
        return _made(told, first, "dag-detail", {"ETag": f'"{told["revision"]}"'})

    # One of them

    @operation("Show a DAG", answers={200: ONE_DAG}, headers=(preconditions.DAG_ETAG_OF_200,))
    def retrieve(self, request: Request, pk: str) -> Response:
        """With its document, its environments masked, and the next slots of its schedule."""
        return _answer(find(request, pk, _dags()))

    @a_change("Replace a DAG", body=DAG_DOCUMENT, body_types=(MEDIA_TYPE, YAML))
    def update(self, request: Request, pk: str) -> Response:
        """Of another document. Runs that are there keep theirs; a new schedule begins now.

        A masked value of an environment means the one that is there.
        """
        dag = _changeable(request, pk)
        document, text = read_document(request)

        def remade(stored: Mapping[str, Any]) -> DagSpec:
            # What is no mapping, `validate` refuses.
            given = unmasked(document, stored) if isinstance(document, dict) else document
            return validate(given, text)

        revision = preconditions.wanted_revision(request, dag)
        return _answer(dags.amend(dag.pk, remade, revision=revision))

    @a_change("Change a DAG", body=DAG_CHANGES)
    def partial_update(self, request: Request, pk: str) -> Response:
        """Each key that is given replaces that key of the document; null takes it away.

        `is_paused` pauses and unpauses. All of it is done, or nothing.
        """
        dag = _changeable(request, pk)
        changes, paused = _changes(request.data)
        revision = preconditions.wanted_revision(request, dag)
        if not changes:
            return _answer(dags.pause(dag.pk, paused=bool(paused), revision=revision))

        def remade(stored: Mapping[str, Any]) -> DagSpec:
            return validate(unmasked({**stored, **changes}, stored))

        return _answer(dags.amend(dag.pk, remade, paused=paused, revision=revision))

    @operation(
        "Delete a DAG",
        answers={204: None},
        headers=(preconditions.DAG_IF_MATCH,),
        problems=(409, 412, 413, 415),
    )
    def destroy(self, request: Request, pk: str) -> Response:
        """With its runs, tasks, jobs, logs and history; 409 while one of its runs is under way."""
        dag = _changeable(request, pk)
        read_object(request.data, {})
        dags.delete(dag.pk, revision=preconditions.wanted_revision(request, dag))
        return Response(status=204)

    # Its verbs

    @a_change("Pause a DAG", body=NO_BODY, body_required=False)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """No run of it begins; those under way go on."""
        return self._pause(request, pk, paused=True)

    @a_change("Unpause a DAG", body=NO_BODY, body_required=False)
    @action(detail=True, methods=["post"])
    def unpause(self, request: Request, pk: str) -> Response:
        """Its runs begin again; of the slots that passed those that `missed_runs` says."""
        return self._pause(request, pk, paused=False)

    def _pause(self, request: Request, pk: str, *, paused: bool) -> Response:
        dag = _changeable(request, pk)
        read_object(request.data, {})
        revision = preconditions.wanted_revision(request, dag)
        return _answer(dags.pause(dag.pk, paused=paused, revision=revision))

    @operation(
        "Trigger a DAG",
        body=TRIGGERING,
        body_required=False,
        answers={201: ONE_RUN, 200: ONE_RUN},
        problems=(409, 422),
        headers=(idempotency.HEADER, location("run")),
        meanings=AGAIN,
    )
    @action(detail=True, methods=["post"])
    def trigger(self, request: Request, pk: str) -> Response:
        """A run by hand. 409 while the DAG is paused, and where it has a run of that moment."""
        dag = _changeable(request, pk)
        wanted = read_object(request.data, TRIGGERING_FIELDS)

        def made() -> str:
            run = dags.trigger(dag.pk, actor=actor(request), **wanted)
            return _as_text(tell_run(RUNS.get(pk=run.pk)))

        kept, first = idempotency.once(request, f"POST dags/{dag.pk}/trigger", made)
        return _made(json.loads(kept), first, "dag-run-detail")

    @operation("Backfill a DAG", body=STRETCH, answers={200: BACKFILLED}, problems=(409,))
    @action(detail=True, methods=["post"])
    def backfill(self, request: Request, pk: str) -> Response:
        """A run for each slot from `first` to `last` that has none; `dry_run` only tells which."""
        dag = _changeable(request, pk)
        wanted = read_object(request.data, STRETCH_FIELDS, required=["first", "last"])
        slots = dags.backfill(dag.pk, actor=actor(request), **wanted)
        told = [tell_slot(slot) for slot in slots]
        return Response({"slots": told, "counts": Counter(slot["result"] for slot in told)})


def _dags() -> Any:
    return Dag.objects.select_related("created_by")


def _changeable(request: Request, pk: str) -> Dag:
    """The DAG, if this person may also change it. Raises Problem (403, 404)."""
    dag: Dag = find(request, pk, _dags().defer("spec"))
    refuse_unless_changeable(request, dag)
    return dag


def _changes(body: Any) -> tuple[dict[str, Any], bool | None]:
    """What shall change of the document, and whether it shall be paused. Raises Problem (400)."""
    if not isinstance(body, dict):
        raise Problem(400, "invalid", "The body must be a JSON object.")
    if not body:
        raise invalid({}, "There is nothing to change.")
    of_row = {name: value for name, value in body.items() if name in PAUSED}
    changes = {name: value for name, value in body.items() if name not in PAUSED}
    return changes, read_object(of_row, PAUSED).get("is_paused")


def _answer(dag: Dag) -> Response:
    return Response(tell_dag(dag), headers={"ETag": etag(dag)})


def _as_text(told: Any) -> str:
    """The text of the answer, which is kept as it is for a key that comes again."""
    return JSONRenderer().render(told).decode()


def _made(
    told: dict[str, Any], first: bool, address: str, headers: Mapping[str, str] | None = None
) -> Response:
    path = reverse(f"container_manager_api:{address}", args=[told["id"]])
    return Response(
        told, 201 if first else 200, headers={"Location": f"{path}/", **(headers or {})}
    )
