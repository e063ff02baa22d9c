"""Make a new job and queue it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from container_manager import lifecycle
from container_manager.management import tables
from container_manager.management.base import JobCommand, actor, failed, wrong_usage
from container_manager.management.selection import pairs, time_span
from container_manager.models import ContainerJob, acting_as
from container_manager.states import Isolation, JobStatus, PullPolicy

LOOK_SECONDS = 0.2


class Command(JobCommand):
    help = "Make a new job, queue it and print its id. Options stand before the command."
    examples = """examples:
  manage.py submit_job --image busybox:latest -- echo hello
  manage.py submit_job --executor process --command "sh -c 'sleep 1; date'" --wait
  manage.py submit_job --image alpine --label team=data --scheduled-for +10m -- sh -c 'exit 3'
"""
    waiting_for: ContainerJob | None = None

    def add_arguments(self, parser: CommandParser) -> None:
        run = parser.add_argument_group("what to run")
        run.add_argument("args", nargs="...", metavar="-- COMMAND", help="program and arguments")
        run.add_argument("--command", metavar="TEXT", help="the same as text, split as in a shell")
        run.add_argument("--image", metavar="REFERENCE")
        run.add_argument("--name", metavar="TEXT")
        run.add_argument("--label", dest="labels", action="append", metavar="KEY=VALUE")
        run.add_argument("--env", dest="environment", action="append", metavar="NAME=VALUE")
        run.add_argument("--working-dir", metavar="PATH")
        where = parser.add_argument_group("where and when")
        where.add_argument("--queue", metavar="NAME")
        where.add_argument("--priority", type=int, metavar="0-100", help="higher first (50)")
        where.add_argument("--executor", metavar="ALIAS")
        where.add_argument("--isolation", metavar="|".join(Isolation.values))
        where.add_argument("--network", metavar="NAME", help="none unless given")
        where.add_argument("--pull-policy", metavar="|".join(PullPolicy.values))
        where.add_argument("--scheduled-for", metavar="TIME", help="ISO 8601 (UTC), or +10m")
        limits = parser.add_argument_group("limits and retries")
        for option, field, kind, unit in _LIMITS:
            limits.add_argument(option, dest=field, type=kind, metavar=unit)
        limits.add_argument("--retry-policy", metavar="NAME|JSON")
        then = parser.add_argument_group("then")
        then.add_argument("--hold", action="store_true", help="leave it pending")
        then.add_argument(
            "--wait", action="store_true", help="until it has ended; exit code 0 if it completed"
        )
        then.add_argument("--json", action="store_true", help="the job as JSON")

    def handle(self, *args: str, **options: Any) -> None:
        if options["hold"] and options["wait"]:
            raise wrong_usage("--hold and --wait: a job that is left pending never ends")
        wanted = _wanted(list(args), options)
        with acting_as(actor()):
            job = lifecycle.submit(queue_now=not options["hold"], **wanted)
        if not options["json"]:
            self.say(str(job.pk))
        if options["wait"]:
            self._wait_for(job)
        self._show(job, options)
        if options["wait"] and job.status != JobStatus.COMPLETED:
            raise failed("the job did not complete")

    def _wait_for(self, job: ContainerJob) -> None:
        self.waiting_for = job
        self._flush()
        while not job.is_settled:
            time.sleep(LOOK_SECONDS)
            try:
                job.refresh_from_db()
            except ContainerJob.DoesNotExist:
                raise failed(f"job {job.pk} was deleted") from None

    def _show(self, job: ContainerJob, options: dict[str, Any]) -> None:
        if options["json"]:
            self.say(tables.dumps(tables.as_json(job)))
        elif options["wait"]:
            self.say(tables.described(job))

    def on_interrupt(self) -> str:
        job = self.waiting_for
        return f"interrupted; job {job.pk} goes on" if job else "interrupted"


_LIMITS: tuple[tuple[str, str, type, str], ...] = (
    ("--timeout", "timeout_seconds", int, "SECONDS"),
    ("--start-timeout", "start_timeout_seconds", int, "SECONDS"),
    ("--queue-timeout", "queue_timeout_seconds", int, "SECONDS"),
    ("--grace", "stop_grace_seconds", int, "SECONDS"),
    ("--memory-mb", "memory_limit_mb", int, "MB"),
    ("--cpus", "cpu_limit", float, "CORES"),
    ("--pids", "pids_limit", int, "N"),
    ("--max-retries", "max_retries", int, "N"),
)
_AS_GIVEN = (
    *("image", "name", "working_dir", "queue", "priority", "executor", "isolation", "network"),
    *("pull_policy", *(field for _, field, _, _ in _LIMITS)),
)


def _wanted(args: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """The fields of the new job that were given."""
    wanted = {name: options[name] for name in _AS_GIVEN if options[name] is not None}
    wanted["command"] = _command(args, options["command"])
    if options["labels"]:
        wanted["labels"] = pairs(options["labels"], "--label")
    if options["environment"]:
        wanted["environment"] = pairs(options["environment"], "--env")
    if options["retry_policy"]:
        wanted["retry_policy"] = _policy(options["retry_policy"])
    if options["scheduled_for"]:
        wanted["scheduled_for"] = _moment(options["scheduled_for"])
    return wanted


def _command(args: list[str], text: Any) -> Any:
    words = args[1:] if args[:1] == ["--"] else args
    if text is not None and words:
        raise wrong_usage("give the command either after -- or with --command")
    if not text and not words:
        raise wrong_usage("say what to run: after --, or with --command")
    return words or text


def _policy(given: Any) -> Any:
    if not isinstance(given, str) or not given.lstrip().startswith(("{", "[")):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise wrong_usage(f"--retry-policy: not valid JSON: {error}") from error


def _moment(given: Any) -> datetime:
    if isinstance(given, datetime):
        return given
    text = str(given).strip()
    try:
        if text.startswith("+"):
            return timezone.now() + time_span(text[1:], "--scheduled-for")
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else timezone.make_aware(moment)
    except (ValueError, OverflowError):
        message = f"--scheduled-for: {text!r} is not a time such as 2030-01-31T08:00Z or +10m"
        raise wrong_usage(message) from None
