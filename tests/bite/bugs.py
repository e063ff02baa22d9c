"""The planted bugs: each could be made by somebody who knows the code and is tired."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "container_manager"


@dataclass(frozen=True)
class Bug:
    """One change of the code, and the tests that are expected to notice."""

    name: str
    file: str
    """Below the package."""
    old: str
    """Occurs there exactly once."""
    new: str
    told: str
    """One sentence: what the code does then."""
    tests: tuple[str, ...]
    words: str = ""
    """Only tests whose names have them (pytest's -k), where a file takes long."""
    on: str = "sqlite"


BUGS = (
    # The guard
    Bug(
        "version skips",
        "db_guard.py",
        "(NEW.version <> OLD.version + 1",
        "(NEW.version <= OLD.version",
        "The triggers let a move raise the version by more than one.",
        ("tests/guard/test_triggers.py",),
    ),
    Bug(
        "stale actor",
        "db_guard.py",
        "told = f\"json_extract({info}, '$.version') = NEW.version\"",
        "told = f\"json_extract({info}, '$.version') IS NOT NULL\"",
        "A change from outside is told as made by whoever made the one before.",
        ("tests/guard/test_triggers.py",),
    ),
    Bug(
        "lost update",
        "models/base.py",
        "mine = base_qs.filter(**self._expected)",
        "mine = base_qs.filter(pk=self.pk)",
        "save() no longer asks whether the row is still as it was read.",
        ("tests/models/test_save_guard.py",),
    ),
    Bug(
        "update takes held rows",
        "models/base.py",
        "self._refuse_held(pk for pk, old in rows.items() if old != new and old == machine.active)",
        "self._refuse_held(pk for pk, old in rows.items() if old == new and old == machine.active)",
        "QuerySet.update moves jobs that a worker holds.",
        ("tests/models/test_queryset_guard.py", "tests/models/test_moves.py"),
    ),
    # The spine
    Bug(
        "unfenced job",
        "lifecycle.py",
        "ended = end_jobs(USING, claimant, held)",
        "ended = end_jobs(USING, claimant, endings)",
        "A worker that lost its lease still ends the job, only not the attempt.",
        ("tests/integration/test_fencing.py",),
    ),
    Bug(
        "kill after cancel",
        "lifecycle.py",
        "asked = job.kill_requested_at or (kind == StopKind.CANCEL and job.cancel_requested_at)",
        "asked = job.kill_requested_at or job.cancel_requested_at",
        "Whoever asked for a cancellation before can no longer ask for a kill.",
        ("tests/test_lifecycle.py",),
    ),
    Bug(
        "poisoned for ever",
        "lifecycle.py",
        "scheduled_for=scheduled_for, infra_retry_count=0",
        "scheduled_for=scheduled_for",
        "A person's retry of a poisoned job leaves it one failure of the machinery from poison.",
        ("tests/test_lifecycle.py",),
    ),
    Bug(
        "takes its own",
        "lifecycle.py",
        "abandoned.exclude(worker_id=own, job_id__in=under_way)",
        "abandoned.exclude(worker_id=own)",
        "A worker never takes back what it claimed without hearing the answer.",
        ("tests/worker/test_rescuer.py", "tests/integration/test_fencing.py"),
    ),
    # Rescue
    Bug(
        "epoch stands still",
        "models/leases.py",
        "lease_epoch=seen.lease_epoch + 1,",
        "lease_epoch=seen.lease_epoch,",
        "An adoption does not raise the epoch: leases of before and after look alike.",
        ("tests/integration/test_fencing.py",),
    ),
    Bug(
        "blind is dead",
        "worker/rescuer.py",
        "if blind or own > self._lease_seconds / 2:",
        "if own > self._lease_seconds / 2:",
        "After a time in which it could not look, a worker takes all others for dead.",
        ("tests/worker/test_rescuer.py",),
    ),
    Bug(
        "pruned too early",
        "worker/rescuer.py",
        ".exclude(pk__in=held).delete()",
        ".delete()",
        "The row of a dead worker goes while attempts still name it.",
        ("tests/worker/test_rescuer.py",),
    ),
    # Outcomes and claims
    Bug(
        "fence without epoch",
        "models/outcomes.py",
        " AND a.lease_epoch = g.epoch",
        "",
        "A worker that came to hold an attempt twice writes with its old lease.",
        ("tests/integration/test_fencing.py",),
    ),
    Bug(
        "retried after cancel",
        "models/outcomes.py",
        '" AND j.cancel_requested_at IS NULL"',
        '""',
        "A job that somebody cancelled is retried when it fails meanwhile.",
        ("tests/test_lifecycle.py", "tests/integration/test_fencing.py"),
    ),
    Bug(
        "limit not counted down",
        "models/claims.py",
        "room[queue] -= 1",
        "room[queue] -= 0",
        "One claim on SQLite takes more from a limited queue than may run.",
        ("tests/integration/test_claims.py",),
    ),
    # Executors
    Bug(
        "started again",
        "executors/docker.py",
        "container is not None and container.has_started:\n            return self._execution",
        "container is not None and container.is_running:\n            return self._execution",
        "A container that has ended is started a second time.",
        ("tests/executors/test_docker.py",),
        words="start",
    ),
    Bug(
        "starts what was stopped",
        "executors/supervisor.py",
        'if "stop" in read_journal(self.journal):',
        'if "ended" in read_journal(self.journal):',
        "A supervisor launches a job although its stop was written down before.",
        ("tests/executors/test_process.py",),
        words="stopped",
    ),
    Bug(
        "strangers are ours",
        "executors/process.py",
        'if records is None or records.get("spec", {}).get("instance") != instance:',
        'if records is None or "spec" not in records:',
        "A process of another installation is found as ours.",
        ("tests/executors/test_process.py",),
        words="instance",
    ),
    # Recorder and runner
    Bug(
        "forgets what came meanwhile",
        "worker/recorder.py",
        "del self._endings[: len(endings)]",
        "self._endings.clear()",
        "An end that is told while others are being written is lost.",
        ("tests/worker/test_recorder.py",),
    ),
    Bug(
        "takes the credit",
        "worker/runner.py",
        "if alive:\n            self._reached_alive.append(kind)",
        "self._reached_alive.append(kind)",
        "A job that had ended by itself before the kill arrived is told as killed.",
        ("tests/worker/test_runner.py",),
    ),
    Bug(
        "adopter starts it",
        "worker/runner.py",
        "if found is not None and found.started:",
        "if found is not None:",
        "Who adopts an attempt that never started starts it, and so may its old worker.",
        ("tests/worker/test_runner.py", "tests/integration/test_crash_points.py"),
    ),
    # Events
    Bug(
        "events: late ones forgotten",
        "models/sequencing.py",
        "late = {each for each in self.under_way if each > told_up_to}",
        "late = set()",
        "A transaction that commits late is forgotten by a pass that did not come to it.",
        ("tests/models/test_sequencing.py",),
        on="postgres",
    ),
    Bug(
        "events: order torn",
        "models/sequencing.py",
        "h.version < c.version",
        "h.version < 0",
        "A later move of a job is told before an earlier one of a younger transaction.",
        ("tests/models/test_sequencing.py",),
        on="postgres",
    ),
    Bug(
        "events: number given twice",
        "db_guard.py",
        'return f"max({newest}, {dealt_with}) + 1"',
        'return f"{newest} + 1"',
        "On SQLite a move gets a number that was dealt with, and is never told.",
        ("tests/models/test_sequencing.py",),
    ),
    Bug(
        "events: the wrong dead letter",
        "worker/delivery.py",
        "self._was_refused(events[error.delivered], error, error.tries)",
        "self._was_refused(events[0], error, error.tries)",
        "Not the event that was refused is put aside, but the first of its batch.",
        ("tests/worker/test_delivery.py",),
    ),
    Bug(
        "events: over a gap",
        "events/redis.py",
        "top < tonumber(ARGV[6]) - 1 then return -1 end",
        "top < 0 then return -1 end",
        "After Redis came back empty the relay goes on as if nothing were missing there.",
        ("tests/events/test_redis.py",),
    ),
    Bug(
        "events: the slow jump",
        "events/feed.py",
        "or sequence + 1 < self._start:",
        "or sequence < 0:",
        "A listener that fell behind goes on with what is in memory.",
        ("tests/events/test_feed.py",),
    ),
)
