"""Hooks of schemathesis: cases name what there is, and what each came to is written down.

Nothing is left out here. A hook puts real ids in the place of drawn ones, and makes parameters fit
each other where the API has a rule that no JSON schema can state.
"""

from __future__ import annotations

import json
import os
from itertools import count, cycle
from pathlib import Path
from typing import Any
from uuid import UUID

import schemathesis
from schemathesis.core.parameters import ParameterLocation

TARGETS = json.loads(Path(os.environ["FUZZ_TARGETS"]).read_text())
TALLY = Path(os.environ["FUZZ_TALLY"])

KIND_OF_METHOD = {
    **{"GET": "read", "HEAD": "read", "PATCH": "change", "PUT": "change", "DELETE": "delete"},
}
LONGEST_WAIT = 0.2

_fresh = {
    collection: {kind: cycle(ids) for kind, ids in kinds.items()}
    for collection, kinds in TARGETS["rows"].items()
}
_numbers = count()
_spare_tokens = iter(TARGETS["spare_tokens"])
_tokens_in_use = {f"Token {token}" for token in TARGETS["people"].values()}


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """The case as it will be sent."""
    number = next(_numbers)
    if number % 10:  # one in ten stays as it was drawn
        _name_what_is_there(case)
    _let_the_body_be_read(case, number)
    if _is_positive(case):
        for parts, make_fit in FITTING.items():
            if case.operation.label.endswith(parts):
                make_fit(case)
    return case


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """What must not happen to the run itself: to lose its token, or to wait for a minute."""
    if "/auth/logout" in case.operation.path:
        _spend_a_spare_token(case)
    if "/abandon/" in case.operation.path and _is_somebodys(case):
        case.headers["Authorization"] = f"Token {TARGETS['people']['operator']}"
    if _seconds(case.query.get("wait")) > LONGEST_WAIT:
        case.query["wait"] = LONGEST_WAIT


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """One line for each case; what a check sends again does not come here."""
    told = {"operation": case.operation.label, "status": response.status_code}
    with TALLY.open("a") as tally:
        tally.write(json.dumps(told) + "\n")


def _is_somebodys(case: Any) -> bool:
    return case.headers.get("Authorization") in _tokens_in_use


def _is_positive(case: Any) -> bool:
    return bool(case.meta and case.meta.generation.mode.is_positive)


def _is_negative_at(case: Any, location: ParameterLocation) -> bool:
    return bool(case.meta and case.meta.is_negative_at(location))


# Ids and names ------------------------------------------------------------------------------------


def _name_what_is_there(case: Any) -> None:
    path, given = case.operation.path, case.path_parameters or {}
    drawn = _uuid(given.get("id"))
    if drawn is not None:
        given["id"] = _worker(drawn) if "/workers/" in path else _row(case, drawn)
    if "alias" in given and not _is_negative_at(case, ParameterLocation.PATH):
        given["alias"] = TARGETS["publishers"][len(given["alias"]) % len(TARGETS["publishers"])]
    is_name = "name" in given and not _is_negative_at(case, ParameterLocation.PATH)
    if is_name and case.operation.label.startswith("GET"):
        given["name"] = TARGETS["queues"][len(str(given["name"])) % len(TARGETS["queues"])]


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(text)
    except (AttributeError, TypeError, ValueError):
        return None


def _worker(drawn: UUID) -> str:
    return str(TARGETS["workers"][drawn.int % len(TARGETS["workers"])])


def _row(case: Any, drawn: UUID) -> str:
    """One that this may be done to: each verb has rows of its own, and uses them up."""
    parts = case.operation.path.removeprefix("/api/v1/").split("/")
    collection = parts[0]
    kind = KIND_OF_METHOD.get(case.operation.method.upper()) or parts[-2]
    ids = TARGETS["rows"][collection][kind]
    return str(ids[drawn.int % len(ids)] if kind == "read" else next(_fresh[collection][kind]))


def _let_the_body_be_read(case: Any, number: int) -> None:
    """A key that is new, and mostly the revision that there is: else all come to 422 or 412.

    A DAG is changed often, so for a DAG: whichever there is.
    """
    headers = case.headers
    if "Idempotency-Key" in headers and not _is_negative_at(case, ParameterLocation.HEADER):
        headers["Idempotency-Key"] = f"{number}-{headers['Idempotency-Key']}"[:255].rstrip()
    revision = TARGETS["revisions"].get((case.path_parameters or {}).get("id"))
    if "If-Match" in headers and revision and number % 10 != 5:
        headers["If-Match"] = f'"{revision}"' if "/jobs/" in case.operation.path else "*"


# What no schema can state -------------------------------------------------------------------------


def _fit_list(case: Any) -> None:
    """A range of dates does not end before it begins."""
    for name in [name for name in case.query if name.endswith("_after")]:
        case.query.pop(name.replace("_after", "_before"), None)


def _fit_logs(case: Any) -> None:
    """Of an attempt that there was: no job here was started twice."""
    for name in ("attempt", "cursor"):
        case.query.pop(name, None)


def _fit_bulk(case: Any) -> None:
    """Of the jobs that are there for this only."""
    if "filter" in case.body:
        case.body["filter"]["queue"] = "bulk"
        for event in ("created", "completed"):
            case.body["filter"].pop(f"{event}_before", None)
    else:
        case.body["ids"] = [next(_fresh["jobs"]["bulk"]) for _ in case.body["ids"]]


def _fit_login(case: Any) -> None:
    """Somebody who exists, three times of four."""
    drawn = len(case.body["username"]) + len(case.body["password"])
    if drawn % 4:
        case.body.update(TARGETS["credentials"][drawn % len(TARGETS["credentials"])])


def _fit_changes(case: Any) -> None:
    """No job here is one that needs no image."""
    if case.body.get("image") == "":
        case.body["image"] = "busybox:latest"


def _fit_document(case: Any) -> None:
    """A name of its own, and what is left of a graph when nothing in it hangs in the air."""
    if not isinstance(case.body, dict):
        return
    body = case.body = _whole(case.body)
    if "name" in body:
        body["name"] = f"fuzz-{next(_numbers)}"
    for name, sound in (("schedule", "0 2 * * *"), ("timezone", "Europe/Berlin")):
        body.update({name: sound} if isinstance(body.get(name), str) else {})
    for name in ("start_date", "end_date"):
        body.pop(name, None)
    before: list[str] = []
    for task_id in list(body.get("tasks") or {}):
        body["tasks"][task_id] = _fit_task(body["tasks"][task_id] or {}, before)
        before.append(task_id)


def _whole(value: Any) -> Any:
    """A copy, for cases share what was drawn once; 2.0, a whole number of JSON schema's, is 2."""
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fit_task(given: dict[str, Any], before: list[str]) -> dict[str, Any]:
    """It depends on tasks that stand before it, and is not so many."""
    task = {"command": "true", **given}
    task["image"] = task.get("image") or "busybox:latest"
    if task.get("depends_on"):
        task["depends_on"] = before[-2:]
    if task.get("environment_from"):
        task["environment_from"] = {}
    if task.get("array"):
        task["array"] = min(task["array"], 3)
    return task


def _fit_trigger(case: Any) -> None:
    """The DAGs that are there have one parameter, those that a case made have none."""
    if isinstance(case.body, dict) and "params" in case.body:
        known = case.path_parameters.get("id") in TARGETS["rows"]["dags"]["trigger"]
        case.body = {**case.body, "params": {"DAY": "friday"} if known else {}}


def _fit_stretch(case: Any) -> None:
    """Some slots, not all there ever are and none to come, of a DAG that has a schedule."""
    case.path_parameters["id"] = next(_fresh["dags"]["backfill"])
    first = min(case.body["first"], "2025-01-31T00:00:00Z")
    case.body = {**case.body, "first": first, "last": first}


FITTING = {
    "GET /api/v1/jobs/": _fit_list,
    "GET /api/v1/dags/": _fit_list,
    "GET /api/v1/dag-runs/": _fit_list,
    "GET /api/v1/task-instances/": _fit_list,
    "POST /api/v1/dags/": _fit_document,
    "PUT /api/v1/dags/{id}/": _fit_document,
    "PATCH /api/v1/dags/{id}/": _fit_document,
    "/dags/{id}/trigger/": _fit_trigger,
    "/dags/{id}/backfill/": _fit_stretch,
    "/logs/": _fit_logs,
    "/logs/raw/": _fit_logs,
    "/jobs/bulk/": _fit_bulk,
    "PATCH /api/v1/jobs/{id}/": _fit_changes,
    "/auth/login/": _fit_login,
}


# The run itself -----------------------------------------------------------------------------------


def _spend_a_spare_token(case: Any) -> None:
    if _is_somebodys(case):
        case.headers["Authorization"] = f"Token {next(_spare_tokens)}"


def _seconds(given: Any) -> float:
    try:
        return float(given)
    except (TypeError, ValueError):
        return 0.0
