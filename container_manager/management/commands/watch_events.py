"""Print what happens, as it happens."""

from __future__ import annotations

import queue
import select
from argparse import ArgumentTypeError
from collections.abc import Iterator
from typing import Any, Self
from uuid import UUID

from django.core.management.base import CommandParser
from django.utils import timezone
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from container_manager.events.base import STATES, Filter, TransitionEvent, Unavailable
from container_manager.events.feed import Forgotten, subscribe
from container_manager.management import tables
from container_manager.management.base import JobCommand, failed, wrong_usage
from container_manager.management.processes import no_statements_kept
from container_manager.management.selection import find_job

LOOK_SECONDS = 0.5
MOST_WAITING = 1_000
PLAIN_WIDTH = 80


def sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ArgumentTypeError(f"{text!r} is not the number of an event")
    return int(text)


class Command(JobCommand):
    help = (
        "Print each move of a job, run or task as it happens, one line each, until Ctrl-C. The "
        "number at the beginning is the place of the event: --after goes on behind it. In a pipe: "
        "tab-separated number, time, type, id, old state, new state, reason, actor."
    )
    examples = """examples:
  manage.py watch_events
  manage.py watch_events --type job --state failed --state killed
  manage.py watch_events --job 3f0c2a9b71de --json
  manage.py watch_events --after 1200
"""
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        kinds = ", ".join(STATES)
        parser.add_argument(
            "--type", action="append", default=[], metavar="TYPE", help=f"only {kinds} (repeatable)"
        )
        parser.add_argument(
            "--state", action="append", default=[], metavar="STATE", help="only into this state"
        )
        parser.add_argument("--job", metavar="ID", help="only this job")
        parser.add_argument(
            "--after", type=sequence, metavar="N", help="what came behind event N, then what comes"
        )
        parser.add_argument("--json", action="store_true", help="one JSON object on each line")

    def handle(self, **options: Any) -> None:
        wanted = self._wanted(options)
        happened = _Happened()
        try:
            subscription = subscribe(
                happened.put,
                entity_types=wanted.entity_types,
                states=wanted.states,
                entity_ids=wanted.entity_ids,
                after=options["after"],
            )
        except Forgotten as error:
            raise failed(f"--after: {error}; the oldest is {error.oldest}") from error
        except Unavailable as error:
            raise failed(str(error)) from error
        except ValueError as error:
            raise wrong_usage(f"--{error}") from error
        with no_statements_kept(), subscription, happened:
            for event in happened:
                if event is not None:
                    self._show(event, options)
                elif _nobody_reads(self.out):
                    raise BrokenPipeError

    def _wanted(self, options: dict[str, Any]) -> Filter:
        jobs: list[UUID] = [find_job(options["job"]).pk] if options["job"] else []
        try:
            return Filter.of(options["type"], options["state"], jobs)
        except ValueError as error:
            raise wrong_usage(str(error)) from error

    def _show(self, event: TransitionEvent, options: dict[str, Any]) -> None:
        if options["json"]:
            self.say(tables.dumps({"sequence": event.sequence, **event.as_json()}))
        elif self.out.isatty():
            console = tables.console(self.out, no_color=options["no_color"])
            console.print(_for_people(event, console), overflow="crop", no_wrap=True)
        else:
            self.say("\t".join(_cells(event)))
        self._flush()


class _Happened:
    """Events on their way from the thread that hears them; where nobody reads, it waits."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[TransitionEvent] = queue.Queue(MOST_WAITING)
        self._ended = False

    def put(self, event: TransitionEvent) -> None:
        while not self._ended:
            try:
                self._waiting.put(event, timeout=LOOK_SECONDS)
                break
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[TransitionEvent | None]:
        """For ever; None now and then, while nothing happens."""
        while True:
            try:
                yield self._waiting.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                yield None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True


def _nobody_reads(stream: Any) -> bool:
    """The other end of the pipe is closed: no need to wait until a line cannot be written."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(what & select.POLLERR for _, what in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _cells(event: TransitionEvent) -> list[str]:
    words = (event.entity_type, event.entity_id, event.old_state or "", event.new_state)
    return [
        f"{event.sequence}",
        event.changed_at.isoformat(timespec="milliseconds"),
        *map(tables.visible, (*words, event.reason, event.actor)),
    ]


KINDS = {"job": "job", "dag_run": "run", "task_instance": "task"}


def _for_people(event: TransitionEvent, console: Console) -> Text:
    """`1234 14:02:07 job 3f0c2a9b71de running -> failed  exit_code  worker:w1`, in one line."""
    local = timezone.localtime(event.changed_at)
    kind = KINDS.get(event.entity_type, event.entity_type)
    line = Text(f"{event.sequence:>6} {local:%H:%M:%S} {kind:<4} ")
    line.append(tables.short_id(event.entity_id), style="bold")
    line.append(f" {event.old_state or '*'} -> ")
    line.append_text(tables.status_text(event.new_state))
    rest = "  ".join(tables.visible(word) for word in (event.reason, event.actor) if word)
    room = (console.width or PLAIN_WIDTH) - cell_len(line.plain) - 2
    if rest and room > 3:
        shown = rest if cell_len(rest) <= room else set_cell_size(rest, room - 1) + "…"
        line.append(f"  {shown}", style="dim")
    return line
