"""ETag, If-Match and If-None-Match: the `revision` of a job or a DAG, in quotes."""

from __future__ import annotations

from typing import Protocol

from django.http import HttpResponse, HttpResponseNotModified
from django.utils.http import parse_etags
from rest_framework.request import Request

from container_manager.api.operations import Header


class Revised(Protocol):
    """What has revisions."""

    @property
    def revision(self) -> str: ...


_TAG = {"type": "string", "pattern": '^"[0-9]+-[0-9]+"$'}
ETAG_OF_200 = Header("ETag", _TAG, "The job's revision.", statuses=(200,))
ETAG_OF_200_202 = Header("ETag", _TAG, "The job's revision.", statuses=(200, 202))
ETAG_OF_CREATED = Header("ETag", _TAG, "The job's revision.", statuses=(200, 201))
_GIVEN = {"type": "string", "examples": ['"1-1769846400000000"']}
IF_MATCH = Header("If-Match", _GIVEN, "Only while this is the job's `ETag`; else 412.")
IF_NONE_MATCH = Header("If-None-Match", _GIVEN, "304 while this is the job's `ETag`.")

_TAG_OF_DAG = {"type": "string", "pattern": r'^"[0-9]+\.[0-9]{6}"$'}
DAG_ETAG_OF_200 = Header("ETag", _TAG_OF_DAG, "The DAG's revision.", statuses=(200,))
DAG_ETAG_OF_CREATED = Header("ETag", _TAG_OF_DAG, "The DAG's revision.", statuses=(200, 201))
DAG_IF_MATCH = Header(
    "If-Match", {"type": "string"}, "Only while this is the DAG's `ETag`; else 412."
)


def etag(row: Revised) -> str:
    """The row's revision as a header has it."""
    return f'"{row.revision}"'


def wanted_revision(request: Request, row: Revised) -> str | None:
    """The revision that `If-Match` asks for; None: whichever it is.

    Of several the row's own, if it is among them.
    """
    given = request.headers.get("If-Match")
    tags = parse_etags(given) if given is not None else ["*"]
    if "*" in tags:
        return None
    return row.revision if etag(row) in tags else "".join(tags[:1]).strip('"')


def not_modified(request: Request, row: Revised) -> HttpResponse | None:
    """The 304 for a client that has this revision already."""
    tags = parse_etags(request.headers.get("If-None-Match", ""))
    known = {tag.removeprefix("W/") for tag in tags}
    if not known & {"*", etag(row)}:
        return None
    return HttpResponseNotModified(headers={"ETag": etag(row)})
