"""The output of a job: as text in pages, as a stream, and byte for byte."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from django.http import HttpResponse, HttpResponseNotModified, StreamingHttpResponse
from rest_framework.request import Request

from container_manager.api import log_stream, streams
from container_manager.api.base import BaseView, Response, find_job
from container_manager.api.errors import Problem
from container_manager.api.log_stream import LogSource
from container_manager.api.machinery import COUNT, closed
from container_manager.api.operations import Header, component, operation
from container_manager.api.pagination import MAX_OFFSET
from container_manager.api.parameters import Parameter, Schema, Unreadable, flag, whole, word
from container_manager.models import ContainerJob
from container_manager.reports.log_following import Follower
from container_manager.reports.log_pages import LogPage, Place, last_lines, page_from
from container_manager.reports.raw_log import RawLog
from container_manager.reports.streaming import streamed
from container_manager.states import Stream

DEFAULT_BYTES, MOST_BYTES = 64 * 1024, 1024 * 1024
MOST_LINES = 10_000
MOST_ATTEMPTS = 2**31 - 1

ATTEMPT = whole("attempt", 1, MOST_ATTEMPTS, "Which attempt; the latest when it is not given.")

_CURSOR = re.compile(r"([0-9]{1,9})(?:-stdout-([0-9]{1,15}))?(?:-stderr-([0-9]{1,15}))?")

CURSOR = Parameter(
    "cursor",
    lambda given: _read_cursor(given),
    {"type": "string", "pattern": f"^{_CURSOR.pattern}$"},
    "Go on where the page ended that gave this cursor.",
)
OFFSET = whole(
    "offset", 0, MAX_OFFSET, "Not before this byte of a stream; beyond the end is empty.", default=0
)
TAIL = whole("tail", 0, MOST_LINES, "Not before the last so many lines.")
LIMIT = whole(
    "limit",
    1,
    MOST_BYTES,
    "Bytes on a page, about: a page ends between two characters and holds one at least.",
    default=DEFAULT_BYTES,
)
FOLLOW = flag("follow", "Stream it, also what is still to come, as Server-Sent Events.")
RESUME = Header(
    streams.LAST_EVENT_ID,
    {"type": "string", "pattern": f"^{_CURSOR.pattern}$"},
    "With `follow`: go on behind the event of this `id`; a `cursor` does not count then.",
)


def which(stream: str | None) -> Parameter:
    described = "Which stream" if stream else "Only this stream; else both, in the order written"
    return word("stream", Stream.values, f"{described}.", default=stream)


# Pages of text ------------------------------------------------------------------------------------

NUMBERS = closed(
    {
        "bytes": {**COUNT, "description": "Printed so far, kept or not."},
        "omitted": {**COUNT, "description": "Left out by the cap, between head and tail."},
        "next_offset": {**COUNT, "description": "Where the next page begins."},
    }
)
ENTRY = closed(
    {
        "stream": {"type": "string", "enum": Stream.values},
        "offset": {**COUNT, "description": "Bytes of the stream before it."},
        "bytes": COUNT,
        "text": {"type": "string"},
        "replaced": {
            "type": "boolean",
            "description": "Some of its bytes are not UTF-8: U+FFFD stands in their place.",
        },
        "omitted_before": {**COUNT, "description": "Bytes that the cap left out before it."},
    }
)
LOG_PAGE = component(
    "LogPage",
    closed(
        {
            "job": {"type": "string", "format": "uuid"},
            "attempt": {**COUNT, "description": "0 before the first start."},
            "entries": {"type": "array", "items": ENTRY},
            "streams": {"type": "object", "additionalProperties": NUMBERS},
            "replaced": {"type": "boolean", "description": "In any entry of this page."},
            "more": {"type": "boolean", "description": "There is more to be read at once."},
            "complete": {
                "type": "boolean",
                "description": "The attempt has ended and nothing follows this page.",
            },
            "cursor": {"type": "string", "description": "For the next page, now or later."},
        }
    ),
)


class LogsView(BaseView):
    """The output as text."""

    tag = "logs"

    @operation(
        "Read the output as text",
        answers={200: LOG_PAGE},
        query=(ATTEMPT, which(None), OFFSET, TAIL, CURSOR, LIMIT, FOLLOW),
        headers=(RESUME,),
        problems=streams.PROBLEMS,
        stream=log_stream.SCHEMA,
    )
    def get(self, request: Request, pk: str) -> Response | StreamingHttpResponse:
        """Both streams in the order they were written, or one of them.

        To read on, also while the job runs, send the `cursor` of the page before until a page says
        `complete`: no byte is lost or told twice. Characters are never cut in two; what is not
        UTF-8 is replaced (`logs/raw/` has the bytes themselves). `cursor`, `offset` and `tail` are
        lower bounds: the latest of them counts.

        With `follow` it is a stream of Server-Sent Events, from there on through the job's retries
        to its end. The `id` of each event is a `cursor`.
        """
        streams.refuse_foreign_pages(request)
        last = streams.last_event(request, _read_cursor)
        job = _job(request, pk)
        if not self.query["follow"]:
            return Response(_shown(job, _page(job, self.query)))
        place = _begin(job, _resuming(job, last, self.query))
        follower = Follower(job.pk, place, only=self.query["attempt"] is not None)
        return streams.answer(request, LogSource(follower), partial(_may_see, pk=job.pk))


def _resuming(job: ContainerJob, last: Place | None, query: dict[str, Any]) -> dict[str, Any]:
    """Who lost his stream repeats the address of the first time, and says where he is now."""
    if last is None:
        return query
    if last.attempt > job.attempt:
        raise streams.no_event(f"The job has no attempt {last.attempt}.")
    return {**query, "cursor": last}


def _may_see(user: Any, pk: Any) -> bool:
    return ContainerJob.objects.visible_to(user).filter(pk=pk).exists()


def _page(job: ContainerJob, query: dict[str, Any]) -> LogPage:
    return page_from(job, _begin(job, query), query["limit"])


def _begin(job: ContainerJob, query: dict[str, Any]) -> Place:
    """Whatever says where to begin is a lower bound; the latest of them counts."""
    begin = query["cursor"]
    attempt = _attempt(job, query["attempt"], begin)
    known = begin.read_to if begin else {}
    streams = [query["stream"]] if query["stream"] else list(known or Stream.values)
    places = [dict.fromkeys(streams, query["offset"]), known]
    if query["tail"] is not None:
        places.append(last_lines(job, attempt, streams, query["tail"]))
    start = {name: max(place.get(name, 0) for place in places) for name in streams}
    return Place(attempt, start)


def _shown(job: ContainerJob, page: LogPage) -> dict[str, Any]:
    return {
        "job": job.pk,
        "attempt": page.place.attempt,
        "entries": [entry.as_json() for entry in page.entries],
        "streams": {
            stream: {
                "bytes": totals.bytes,
                "omitted": totals.omitted,
                "next_offset": page.place.read_to[stream],
            }
            for stream, totals in page.totals.items()
        },
        "replaced": any(entry.replaced for entry in page.entries),
        "more": page.more,
        "complete": page.complete,
        "cursor": log_stream.cursor(page.place),
    }


def _read_cursor(given: str) -> Place:
    found = _CURSOR.fullmatch(given)
    if found is None:
        raise Unreadable("Must be the cursor of a page.")
    ends = zip(Stream.values, found.groups()[1:], strict=True)
    return Place(int(found[1]), {name: int(end) for name, end in ends if end is not None})


# Bytes --------------------------------------------------------------------------------------------

RANGE = Header("Range", {"type": "string", "examples": ["bytes=0-1023"]}, "One range of bytes.")
IF_RANGE = Header("If-Range", {"type": "string"}, "The range only if this is still the ETag.")
IF_NONE_MATCH = Header("If-None-Match", {"type": "string"}, "An ETag that is known already.")
ANSWERED = (
    Header("ETag", {"type": "string"}, "Changes whenever the bytes do.", (200, 206, 304)),
    Header("X-Omitted-Bytes", COUNT, "Bytes that the cap left out.", (200, 206)),
    Header("Content-Range", {"type": "string"}, "Which part this is, of how many.", (206, 416)),
)
OCTETS = "application/octet-stream"
BYTES: Schema = {"type": "string", "format": "binary"}


class RawLogView(BaseView):
    """The output byte for byte."""

    tag = "logs"

    @operation(
        "Download the output",
        answers={200: BYTES, 206: BYTES, 304: None},
        query=(ATTEMPT, which(str(Stream.STDOUT))),
        headers=(RANGE, IF_RANGE, IF_NONE_MATCH, *ANSWERED),
        problems=(416,),
        media_type=OCTETS,
    )
    def get(self, request: Request, pk: str) -> Any:
        """The kept bytes of one stream as the job wrote them; of a running job those so far.

        `X-Omitted-Bytes` tells how many bytes the cap left out between head and tail.
        """
        job = _job(request, pk)
        attempt = _attempt(job, self.query["attempt"])
        stream = self.query["stream"]
        log = RawLog(job.pk, attempt, stream)
        headers = {
            "Accept-Ranges": "bytes",
            "Content-Disposition": f'attachment; filename="cm-{job.pk}-{attempt}.{stream}.log"',
            "ETag": f'"{log.tag}"',
            "X-Content-Type-Options": "nosniff",
            "X-Omitted-Bytes": str(log.omitted),
        }
        if _is_known(request, headers["ETag"]):
            return HttpResponseNotModified(headers={"ETag": headers["ETag"]})
        part = _range(request, headers["ETag"], log.size)
        return _download(request, log, part, headers)


def _download(
    request: Request, log: RawLog, part: range | None, headers: dict[str, str]
) -> HttpResponse | StreamingHttpResponse:
    chosen = range(log.size) if part is None else part
    headers["Content-Length"] = str(len(chosen))
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{log.size}"
    pieces = () if request.method == "HEAD" else log.read(chosen.start, chosen.stop)
    return StreamingHttpResponse(
        streamed(request._request, pieces),
        status=200 if part is None else 206,
        content_type=OCTETS,
        headers=headers,
    )


def _is_known(request: Request, tag: str) -> bool:
    known = request.headers.get("If-None-Match", "")
    return tag in [each.strip().removeprefix("W/") for each in known.split(",")] or known == "*"


_RANGES = re.compile(r"bytes=\s*([0-9]{0,30})-([0-9]{0,30})\s*")


def _range(request: Request, tag: str, size: int) -> range | None:
    """The bytes that were asked for; None: all. Raises Problem (416)."""
    given = request.headers.get("Range")
    if given is None or not given.startswith("bytes="):  # another unit is nobody's business here
        return None
    if request.headers.get("If-Range", tag) != tag:
        return None
    found = _RANGES.fullmatch(given)
    part = _resolved(found[1], found[2], size) if found else range(0)
    if not part:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"Give one range of the {size} bytes that there are, such as bytes=0-1023.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return part


def _resolved(first: str, last: str, size: int) -> range:
    """Positions as HTTP counts them; empty when there are none.

    >>> _resolved("2", "", 10), _resolved("", "3", 10), _resolved("0", "99", 10)
    (range(2, 10), range(7, 10), range(0, 10))
    """
    if not first:
        return range(max(0, size - int(last)), size) if last else range(0)
    return range(int(first), min(size, int(last) + 1) if last else size)


# Both ---------------------------------------------------------------------------------------------


def _job(request: Request, pk: str) -> ContainerJob:
    return find_job(request, pk, ContainerJob.objects.only("attempt", "status", "version"))


def _attempt(job: ContainerJob, given: int | None, begin: Place | None = None) -> int:
    """The attempt that was asked for. Raises Problem (404)."""
    if begin is not None:
        # 0: it had not been started when that page was read.
        of_cursor = begin.attempt or min(1, job.attempt)
        if given not in (None, of_cursor):
            raise _no_attempt(f"The cursor is of attempt {of_cursor}.")
        given = of_cursor
    if given is None:
        return job.attempt
    if given > job.attempt:
        there = f"there are 1 to {job.attempt}" if job.attempt else "it was never started"
        raise _no_attempt(f"The job has no attempt {given}; {there}.")
    return given


def _no_attempt(detail: str) -> Problem:
    return Problem(404, "not_found", detail)
