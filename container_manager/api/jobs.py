"""`/jobs/`: a list, a new one, one by itself, its verbs, its records."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from django.http import HttpResponse
from django.urls import reverse
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from container_manager import lifecycle
from container_manager.api import idempotency, job_bulk, preconditions
from container_manager.api.base import (
    BaseViewSet,
    JSONRenderer,
    actor,
    find_changeable_job,
    find_job,
    refuse_unless_operator,
)
from container_manager.api.bodies import read_object
from container_manager.api.errors import invalid
from container_manager.api.job_fields import READ_ONLY, tell
from container_manager.api.job_query import FILTERS, ORDERING, read_page, select
from container_manager.api.job_records import ATTEMPT, EXPLANATION, MOVE, attempts_of, moves_of
from container_manager.api.job_schemas import (
    CHANGES,
    JOB_CHANGES,
    LISTED_JOB,
    NEW,
    NEW_JOB,
    ONE_JOB,
    QUEUEING,
    WHEN,
)
from container_manager.api.operations import NO_BODY, Header, component, operation
from container_manager.api.pagination import PAGE, page, page_of, page_of_rows
from container_manager.api.preconditions import IF_MATCH, IF_NONE_MATCH, etag
from container_manager.api.waiting import until_stopped, wait_parameter
from container_manager.lifecycle import Stopped
from container_manager.models import ContainerJob, access, acting_as
from container_manager.reports.explain import explain
from container_manager.states import JobStatus

WAIT, WAIT_NOT = wait_parameter(10), wait_parameter(0)
LOCATION = Header(
    "Location", {"type": "string", "format": "uri-reference"}, "The job.", statuses=(200, 201)
)
MOVED = {200: ONE_JOB}
STOPPED = {200: ONE_JOB, 202: ONE_JOB}

a_verb = partial(operation, body_required=False, problems=(409, 412))
a_move = partial(a_verb, answers=MOVED, headers=(IF_MATCH, preconditions.ETAG_OF_200))
a_stop = partial(
    a_verb, body=NO_BODY, answers=STOPPED, headers=(IF_MATCH, preconditions.ETAG_OF_200_202)
)
"""What the verbs of one job have in common."""


class JobViewSet(BaseViewSet):
    """Jobs that this person may see."""

    tag = "jobs"
    lookup_value_regex = "[^/]+"

    # All of them

    @operation(
        "List jobs",
        query=(*PAGE, *FILTERS, ORDERING),
        answers={200: component("JobPage", page_of(LISTED_JOB))},
    )
    def list(self, request: Request) -> Response:
        """Newest first. Filters of different names narrow; values of one name widen, save labels.

        People see their own jobs, operators all. Rows leave out the output.
        """
        selected = select(request.user, self.query)
        limit, offset = self.query["limit"], self.query["offset"]
        count, rows = read_page(selected, self.query["ordering"], limit, offset)
        return Response(page(request, count, limit, offset, rows))

    @operation(
        "Submit a job",
        body=NEW_JOB,
        answers={201: ONE_JOB, 200: ONE_JOB},
        problems=(422,),
        headers=(idempotency.HEADER, LOCATION, preconditions.ETAG_OF_CREATED),
        meanings={200: "This `Idempotency-Key` was used before: the answer it got then."},
    )
    def create(self, request: Request) -> Response:
        """The job is `pending`, or with `queue_now` it is `queued`."""
        wanted = read_object(request.data, NEW, read_only=READ_ONLY)
        text, first = idempotency.once(request, "POST jobs", lambda: _submit(request, wanted))
        told = json.loads(text)
        address = reverse("container_manager_api:job-detail", args=[told["id"]])
        headers = {"Location": f"{address}/", "ETag": f'"{told["revision"]}"'}
        return Response(told, 201 if first else 200, headers=headers)

    @operation(
        "Move many jobs", body=job_bulk.REQUEST, answers={200: job_bulk.ANSWER}, problems=(403,)
    )
    @action(detail=False, methods=["post"])
    def bulk(self, request: Request) -> Response:
        """One verb on many jobs. Each gets its result, whatever comes of the others.

        An id that is unknown, or of a job that this person may not see, has the result `unknown`.
        """
        return Response(job_bulk.act(request))

    # One of them

    @operation(
        "Show a job",
        answers={200: ONE_JOB, 304: None},
        headers=(IF_NONE_MATCH, preconditions.ETAG_OF_200),
    )
    def retrieve(self, request: Request, pk: str) -> HttpResponse:
        """All that its row says, but the values of its environment."""
        job = find_job(request, pk)
        return preconditions.not_modified(request, job) or _answer(job)

    @operation(
        "Change a job",
        body=JOB_CHANGES,
        answers=STOPPED,
        problems=(409, 412),
        headers=(IF_MATCH, preconditions.ETAG_OF_200_202),
    )
    def partial_update(self, request: Request, pk: str) -> Response:
        """What may be changed depends on its state: `changeable` says so.

        A `status` is the verb of that name. Fields and status change together or not at all.
        """
        job = find_changeable_job(request, pk)
        changes = read_object(request.data, CHANGES, read_only=READ_ONLY)
        status = _status(changes)
        revision = preconditions.wanted_revision(request, job)
        came = lifecycle.revise(job.pk, changes, status, revision=revision, actor=actor(request))
        return _came(job, came, wait=0)

    @operation(
        "Kill a job",
        query=(WAIT,),
        answers=STOPPED,
        problems=(409, 412, 413, 415),
        headers=(
            IF_MATCH,
            preconditions.ETAG_OF_200_202,
        ),
    )
    def destroy(self, request: Request, pk: str) -> Response:
        """The same as `kill/`: the row, its output and its history stay."""
        return self._bring(request, pk, JobStatus.KILLED)

    # Its verbs

    @a_move("Queue a job", body=QUEUEING)
    @action(detail=True, methods=["post"])
    def queue(self, request: Request, pk: str) -> Response:
        """From `pending`; or from `retrying`, without waiting out the backoff."""
        job = find_changeable_job(request, pk)
        when = read_object(request.data, WHEN)
        revision = preconditions.wanted_revision(request, job)
        came = lifecycle.bring(
            job.pk, JobStatus.QUEUED, revision=revision, actor=actor(request), **when
        )
        return _came(job, came, wait=0)

    @a_stop("Cancel a job", query=(WAIT_NOT,))
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """One that does not run never starts; one that runs is asked to stop, then by force."""
        return self._bring(request, pk, JobStatus.CANCELLED)

    @a_stop("Kill a job", query=(WAIT,))
    @action(detail=True, methods=["post"])
    def kill(self, request: Request, pk: str) -> Response:
        """Stopped by force, at once."""
        return self._bring(request, pk, JobStatus.KILLED)

    @a_move("Retry a job", body=NO_BODY)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """From `failed` it ends in `queued`, and does not use up the job's own retries."""
        return self._bring(request, pk, JobStatus.RETRYING)

    @a_move("Abandon a job", body=NO_BODY)
    @action(detail=True, methods=["post"])
    def abandon(self, request: Request, pk: str) -> Response:
        """For operators: a running job whose engine nobody can reach ends as `failed`, `unproven`.

        It is not retried by itself; what is left of it is killed when its engine is back. Where
        the engine answers this is a 409 that says so.
        """
        job = find_changeable_job(request, pk)
        refuse_unless_operator(request)
        read_object(request.data, {})
        revision = preconditions.wanted_revision(request, job)
        lifecycle.abandon_one(job.pk, revision=revision, actor=actor(request))
        return _answer(ContainerJob.objects.select_related("created_by").get(pk=job.pk))

    def _bring(self, request: Request, pk: str, status: JobStatus) -> Response:
        job = find_changeable_job(request, pk)
        read_object(request.data, {})
        revision = preconditions.wanted_revision(request, job)
        came = lifecycle.bring(job.pk, status, revision=revision, actor=actor(request))
        return _came(job, came, wait=self.query.get("wait", 0))

    # Its records

    @operation(
        "Show the history of a job",
        query=PAGE,
        answers={200: component("MovePage", page_of(MOVE))},
    )
    @action(detail=True)
    def history(self, request: Request, pk: str) -> Response:
        """Every move it made, newest first."""
        job = find_job(request, pk, ContainerJob.objects.only("pk"))
        return Response(page_of_rows(request, self.query, moves_of(job)))

    @operation(
        "Show the attempts of a job",
        query=PAGE,
        answers={200: component("AttemptPage", page_of(ATTEMPT))},
    )
    @action(detail=True)
    def attempts(self, request: Request, pk: str) -> Response:
        """Every start of it and its evidence, newest first."""
        job = find_job(request, pk, ContainerJob.objects.only("pk"))
        return Response(page_of_rows(request, self.query, attempts_of(job)))

    @operation("Explain a job", answers={200: EXPLANATION})
    @action(detail=True)
    def explain(self, request: Request, pk: str) -> Response:
        """Why it does not run, or what it is doing instead."""
        return Response(explain(find_job(request, pk), access.scope(request.user)).as_json())


def _submit(request: Request, wanted: dict[str, Any]) -> str:
    """The new job as the text of the answer, which is kept as it is for a key that comes again."""
    with acting_as(actor(request)):
        job = lifecycle.submit(created_by=request.user, **wanted)
    return JSONRenderer().render(tell(job)).decode()


def _status(changes: dict[str, Any]) -> JobStatus | None:
    """Takes the status out of what shall be changed. Raises Problem (400)."""
    if not changes:
        raise invalid({}, "There is nothing to change.")
    status = changes.pop("status", None)
    if status not in (None, *JobStatus):
        raise invalid({"status": [f"Must be one of {', '.join(JobStatus)}."]})
    return None if status is None else JobStatus(status)


def _came(job: ContainerJob, came: Stopped, wait: float) -> Response:
    """200 when it is done; 202 while its container is being stopped."""
    asked = came == Stopped.REQUESTED
    now = until_stopped(job.pk, wait if asked else 0)
    return _answer(now, 202 if asked and now.status == JobStatus.RUNNING else 200)


def _answer(job: ContainerJob, status: int = 200) -> Response:
    return Response(tell(job), status, headers={"ETag": etag(job)})
