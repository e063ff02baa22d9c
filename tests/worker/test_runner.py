"""One attempt from start to end, on a fake engine and with a recorder that only listens."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from dataclasses import replace
from uuid import uuid4

import pytest

from container_manager import journal
from container_manager.engines import Engine
from container_manager.executors.base import (
    Barred,
    Chunk,
    EngineRefused,
    EngineUnavailable,
    Execution,
    ExecutorError,
    LaunchFailed,
    Outcome,
)
from container_manager.executors.breaker import Breaker
from container_manager.executors.inline import InlineExecutor
from container_manager.models.leases import Lease
from container_manager.states import Reason, StopKind
from container_manager.worker import runner
from container_manager.worker.output import Output
from container_manager.worker.runner import Run, run_inline, spec_of, strongest
from tests.support.fake_executor import KILLED, FakeExecutor, World
from tests.support.workers import wait_until


def a_lease(**changes):
    lease = Lease(
        job_id=uuid4(),
        attempt=1,
        epoch=1,
        executor="fake",
        isolation="container",
        engine_id="fake",
        image="busybox",
        command=["true"],
        working_dir="",
        environment={"A": "1"},
        pull_policy="missing",
        network="none",
        cpu_limit=None,
        memory_limit_mb=None,
        pids_limit=None,
        timeout_seconds=None,
        start_timeout_seconds=60,
        stop_grace_seconds=5,
        max_retries=0,
        retry_count=0,
        infra_retry_count=0,
        retry_policy={},
    )
    return replace(lease, **changes)


class Listening:
    """A recorder that answers at once."""

    def __init__(self):
        self.held = True
        self.steps = []
        self.ends = []
        self.forgotten = []

    def step(self, lease, phase, **facts):
        self.steps.append((str(phase), facts))
        future = Future()
        future.set_result(self.held)
        return future

    def note(self, lease, phase, **facts):
        return self.step(lease, phase, **facts)

    def follow(self, output):
        pass

    def end(self, ending, output=None):
        self.ends.append(ending)

    def forget(self, lease):
        self.forgotten.append(lease)

    @property
    def phases(self):
        return [phase for phase, _ in self.steps]


@pytest.fixture
def recorder():
    return Listening()


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(FakeExecutor, "world", world)
    monkeypatch.setattr(runner, "FIRST_WAIT", 0.001)
    return world


@pytest.fixture
def new_run(recorder, world):
    runs = []
    engine = Engine("fake", FakeExecutor(), Breaker(failures=10**9))

    def make(**changes):
        lease = a_lease(**changes)
        output = Output(lease, 10**6, {})
        made = Run(lease, engine, "instance", recorder, output)
        made.thread = threading.Thread(target=made.run, daemon=True)
        runs.append(made)
        return made

    yield make
    for made in runs:
        made.let_go()
        for ended in world.ended.values():
            ended.set()
        if made.thread.ident:
            made.thread.join(30)
            assert not made.thread.is_alive()


@pytest.fixture
def ended(recorder):
    def run(made):
        """Run it to its end; returns how it ended."""
        if not made.thread.ident:
            made.thread.start()
        made.thread.join(30)
        (ending,) = recorder.ends
        return ending

    return run


def running(made):
    made.thread.start()
    wait_until(lambda: made.has_started, "the start")
    return made


# From start to end


def test_a_run_reports_each_step_before_the_next(new_run, recorder, ended, world):
    ending = ended(new_run())
    assert (ending.status, ending.exit_code) == ("completed", 0)
    assert recorder.phases == ["pulling", "created", "started", "collecting"]
    assert [call for call, _ in world.calls] == ["create", "start", "attach", "collect"]


def test_the_execution_is_reported_before_it_is_started(new_run, recorder, ended, world):
    made = new_run()
    ended(made)
    assert recorder.steps[1][1]["execution_id"] == f"id-{made.lease.name}"
    assert recorder.steps[2][1]["started_at"] is not None


def test_the_executor_is_told_what_the_job_wants(world):
    spec = spec_of(a_lease(), "instance")
    assert spec.labels["container-manager.instance"] == "instance"
    assert spec.environment == {"A": "1", "CM_JOB_ID": spec.job_id, "CM_ATTEMPT": "1"}


def test_a_job_cannot_name_itself_otherwise(world):
    lease = a_lease(environment={"CM_ATTEMPT": "7"})
    assert spec_of(lease, "i").environment["CM_ATTEMPT"] == "1"


def test_output_is_handed_on(new_run, ended, world):
    world.chunks = (Chunk("stdout", 0, b"ab"), Chunk("stderr", 0, b"c"))
    made = new_run()
    ended(made)
    assert made._output.ends() == {"stdout": 2, "stderr": 1}


def test_a_launch_that_fails_is_an_end_with_its_reason(new_run, ended, world):
    world.refusal = LaunchFailed(Reason.IMAGE_NOT_FOUND, "No such image.")
    ending = ended(new_run())
    assert (ending.status, ending.reason, ending.error) == (
        *("failed", "image_not_found"),
        "No such image.",
    )


def test_a_name_that_a_stranger_took_is_a_failed_launch(new_run, ended, world):
    def taken(_spec):
        raise Barred("taken")

    world.on_create = taken
    assert ended(new_run()).reason == "launch_error"


def test_a_name_that_the_rescuer_took_means_that_the_attempt_is_lost(new_run, recorder, world):
    made = new_run()

    def taken(_spec):
        recorder.held = False
        raise Barred("taken")

    world.on_create = taken
    made.thread.start()
    made.thread.join(30)
    assert recorder.ends == []
    assert made.is_lost


# The engine is away


def test_an_engine_that_is_away_decides_nothing(new_run, recorder, ended, world):
    world.hiccups = 3
    assert ended(new_run()).status == "completed"
    assert [facts.get("unreachable") for _, facts in recorder.steps].count(True) == 4
    assert not recorder.steps[-1][1].get("unreachable")


def test_a_lost_attempt_does_not_wait_for_an_engine_that_is_away(new_run, recorder, world):
    world.hiccups = 10**9
    made = new_run()
    made.thread.start()
    wait_until(lambda: ("pulling", {}) in recorder.steps, "the first step")
    made.let_go()
    made.thread.join(30)
    assert recorder.ends == []


def test_who_hears_from_the_engine_is_told_after_who_did_not(new_run, recorder, monkeypatch):
    """A stopper's thread finds the engine away while the output still comes in."""
    made, step = new_run(), recorder.step
    answers = threading.Thread(target=made._reachable_again)

    def overtaken(lease, phase, **facts):
        if facts["unreachable"]:
            answers.start()
            answers.join(0.2)
        return step(lease, phase, **facts)

    monkeypatch.setattr(recorder, "step", overtaken)
    made._note_unreachable(EngineUnavailable("The engine is away."))
    answers.join()
    assert [facts["unreachable"] for _, facts in recorder.steps] == [True, False]


# Lost


def test_who_lost_the_attempt_starts_nothing(new_run, recorder, world):
    recorder.held = False
    made = new_run()
    made.thread.start()
    made.thread.join(30)
    assert world.times("start") == 0
    assert recorder.ends == []
    assert made.is_lost
    assert not made.gave_up


def test_who_lost_the_attempt_stops_nothing_and_removes_nothing(new_run, recorder, world):
    world.runs_until_stopped = True
    made = running(new_run())
    made.let_go()
    made._stop(StopKind.KILL)
    assert not [call for call, _ in world.calls if call.startswith(("stop", "remove"))]
    assert recorder.forgotten == [made.lease]


def test_an_error_of_ours_ends_no_job(new_run, recorder, world, caplog):
    def broken(_spec):
        raise RuntimeError("a bug")

    world.on_create = broken
    made = new_run()
    made.thread.start()
    made.thread.join(30)
    assert made.gave_up
    assert recorder.ends == []
    assert "a bug" in caplog.text


# Stops


@pytest.mark.parametrize(
    ("kind", "call", "status"),
    [
        (StopKind.KILL, "stop 0", "killed"),
        (StopKind.CANCEL, "stop 5", "cancelled"),
        (StopKind.TIMEOUT, "stop 5", "failed"),
        (StopKind.DRAIN, "stop 5", "failed"),
    ],
)
def test_a_stop_names_the_end(new_run, ended, world, kind, call, status):
    world.runs_until_stopped = True
    made = running(new_run())
    made.stop(kind)
    assert ended(made).status == status
    assert world.times(call) == 1


def test_a_kill_that_came_after_the_end_does_not_name_it(new_run, ended, world, monkeypatch):
    """Row 31: it ended by itself just before the signal would have reached it."""

    def too_late(executor, execution, *, grace):
        executor.world.end(execution.name, Outcome(exit_code=0))
        return False

    monkeypatch.setattr(FakeExecutor, "stop", too_late)
    world.runs_until_stopped = True
    made = running(new_run())
    made.stop(StopKind.KILL)
    assert ended(made).status == "completed"


def test_a_kill_ends_what_does_not_listen_to_a_cancel(new_run, ended, world):
    world.runs_until_stopped, world.listens = True, False
    made = running(new_run())
    made.stop(StopKind.CANCEL)
    wait_until(lambda: world.times("stop 5"), "the cancel")
    assert made.may_ask(StopKind.KILL)
    made.stop(StopKind.KILL)
    ending = ended(made)
    assert (ending.status, ending.exit_code) == ("killed", 137)


def test_a_weaker_stop_is_not_asked_after_a_stronger_one(new_run):
    """Row 30: a timeout while it is being killed."""
    made = new_run()
    made.asked = StopKind.CANCEL
    assert not made.may_ask(StopKind.CANCEL)
    assert not made.may_ask(StopKind.TIMEOUT)
    assert made.may_ask(StopKind.KILL)


def test_a_stop_that_came_too_late_names_nothing(new_run, ended, world):
    """Row 30: success at the deadline, when the end was first."""
    made = new_run()
    ending = ended(made)
    made.stop(StopKind.KILL)
    for stopper in made._stoppers:
        stopper.join()
    assert ending.status == "completed"


def test_a_stop_that_broke_is_asked_for_again(new_run, ended, world, monkeypatch, caplog):
    world.runs_until_stopped = True
    made = running(new_run())
    with monkeypatch.context() as patch:
        patch.setattr(FakeExecutor, "stop", lambda *_, **__: 1 / 0)
        made.stop(StopKind.KILL)
        made._stoppers[0].join(30)
    assert "ZeroDivisionError" in caplog.text
    assert made.may_ask(StopKind.KILL)
    made.stop(StopKind.KILL)
    assert ended(made).status == "killed"


def test_a_stop_before_the_start_starts_nothing(new_run, ended, world):
    made = new_run()
    world.on_create = lambda _spec: made.stop(StopKind.CANCEL)
    ending = ended(made)
    assert (ending.status, ending.exit_code) == ("cancelled", None)
    assert world.times("start") == 0


def test_a_stop_between_creating_and_starting_removes_what_was_created(
    new_run, recorder, ended, world
):
    """Row 30: a stop during the create."""
    made = new_run()
    step = recorder.step

    def stopped_meanwhile(lease, phase, **facts):
        if phase == "created":
            made.stop(StopKind.KILL)
        return step(lease, phase, **facts)

    recorder.step = stopped_meanwhile
    ending = ended(made)
    assert (ending.status, ending.exit_code) == ("killed", None)
    assert world.times("start") == 0
    assert world.times("remove") == 1


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], None),
        ([StopKind.CANCEL, StopKind.KILL, StopKind.TIMEOUT], StopKind.KILL),
        ([StopKind.TIMEOUT, StopKind.CANCEL], StopKind.CANCEL),
        ([StopKind.DRAIN, StopKind.TIMEOUT], StopKind.TIMEOUT),
    ],
)
def test_the_strongest_stop_names_the_end(kinds, expected):
    assert strongest(kinds) == expected


# Deadlines


def test_the_time_limit_counts_from_the_start_that_the_engine_tells(new_run, world, monkeypatch):
    monkeypatch.setattr(runner.time, "monotonic", lambda: 5000.0)
    made = new_run(timeout_seconds=60)
    made._set_deadline(Execution("n", "i", elapsed_seconds=45.0))
    assert made.deadline == 5015.0


def test_a_job_without_a_time_limit_has_no_deadline(new_run, ended):
    made = new_run()
    ended(made)
    assert made.deadline is None


# Adopted


def test_what_an_earlier_worker_started_is_found_and_followed(new_run, ended, world):
    made = new_run(adopted=True, epoch=2)
    name = made.lease.name
    world.executions[name] = Execution(name, "id", started=True, running=True)
    world.ended[name] = threading.Event()
    world.end(name, Outcome(4, reason=Reason.EXIT_CODE))
    assert ended(made).exit_code == 4
    assert world.times("create") == 0


def test_what_an_earlier_worker_created_and_did_not_start_is_never_started(new_run, ended, world):
    """That worker may be about to start it: of two starts one would be a second run."""
    made = new_run(adopted=True, epoch=2)
    world.executions[made.lease.name] = Execution(made.lease.name, "id")
    end = ended(made)
    assert (end.status, end.reason, end.retry_infra) == ("failed", "worker_lost", True)
    assert (world.times("start"), world.executions, world.barred) == (0, {}, {made.lease.name})


def test_what_an_earlier_worker_could_not_start_ends_by_its_own_reason(
    new_run, ended, world, monkeypatch
):
    """It is still there as evidence, until the end is committed."""
    made = new_run(adopted=True, epoch=2)
    world.executions[made.lease.name] = Execution(made.lease.name, "id")

    def discard(_self, _execution):
        raise LaunchFailed(Reason.COMMAND_NOT_FOUND, "no such file")

    monkeypatch.setattr(FakeExecutor, "discard", discard)
    end = ended(made)
    assert (end.status, end.reason, end.retry_infra) == ("failed", "command_not_found", False)
    assert made.lease.name in world.executions


@pytest.mark.parametrize("row", [{"environment": []}, {"environment": {"A": 1}}, {"command": 5}])
def test_a_row_that_no_executor_can_read_is_a_failed_launch(new_run, ended, world, row):
    end = ended(new_run(**row))
    assert (end.status, end.reason, end.retry) == ("failed", "not_permitted", False)
    assert world.times("create") == 0


def test_an_engine_that_answers_but_will_not_start_it_in_time_ends_it(new_run, ended, world):
    world.on_create = _refuse
    end = ended(new_run(start_timeout_seconds=0))
    assert (end.status, end.reason) == ("failed", "launch_error")


def _refuse(_spec):
    raise EngineRefused("The engine could not: no idea why.")


@pytest.mark.parametrize(
    ("kind", "outcome", "status"),
    [
        ("cancel", Outcome(0), "completed"),
        ("cancel", KILLED, "cancelled"),
        ("drain", Outcome(0), "completed"),
        ("timeout", Outcome(0), "completed"),
    ],
)
def test_an_end_before_the_signal_of_an_earlier_worker_is_told_as_it_was(
    new_run, ended, world, kind, outcome, status
):
    made = new_run(adopted=True, epoch=2, stop_kind=kind, timeout_seconds=60)
    name = made.lease.name
    world.executions[name] = Execution(name, "id", started=True)
    world.ended[name] = threading.Event()
    world.end(name, outcome)
    assert ended(made).status == status


def test_absent_is_said_only_after_a_late_create_was_made_impossible(new_run, ended, world):
    made = new_run(adopted=True, epoch=2)
    ending = ended(made)
    assert (ending.reason, ending.blame) == ("worker_lost", "infra")
    assert [call for call, _ in world.calls] == ["find", "bar"]
    assert world.barred == {made.lease.name}


def test_what_turns_up_just_before_it_is_barred_is_adopted(new_run, ended, world, monkeypatch):
    made = new_run(adopted=True, epoch=2)

    def turns_up(self, spec):
        execution = Execution(spec.name, "id", started=True)
        world.executions[spec.name] = execution
        world.ended[spec.name] = threading.Event()
        world.end(spec.name, Outcome(0))
        return False

    monkeypatch.setattr(FakeExecutor, "bar", turns_up)
    assert ended(made).status == "completed"


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("cancel", "cancelled", "cancelled"),
        ("timeout", "failed", "timeout"),
        ("drain", "failed", "worker_stopped"),
    ],
)
def test_a_stop_that_the_earlier_worker_had_begun_names_the_end(
    new_run, ended, world, kind, status, reason
):
    made = new_run(adopted=True, epoch=2, stop_kind=kind)
    name = made.lease.name
    world.executions[name] = Execution(name, "id", started=True, running=True)
    world.ended[name] = threading.Event()
    running(made)
    world.end(name, Outcome(143, signal=15, reason=Reason.SIGNAL))
    ending = ended(made)
    assert (ending.status, ending.reason) == (status, reason)


def test_what_somebody_removed_is_lost_and_no_success(new_run, ended, world, monkeypatch):
    def gone(self, execution):
        world.executions.clear()
        raise ExecutorError("no such container")

    monkeypatch.setattr(FakeExecutor, "collect", gone)
    assert ended(new_run()).reason == "worker_lost"


# Inside the worker


def test_one_inline_job_that_breaks_does_not_keep_the_others(recorder, caplog):
    def work(spec):
        if spec.command == ("break",):
            raise RuntimeError("broken")
        if spec.command == ("refuse",):
            raise LaunchFailed(Reason.NOT_PERMITTED, "No.")
        return Outcome(0)

    commands = (["true"], ["break"], ["refuse"], ["true"])
    leases = [a_lease(command=command) for command in commands]
    run_inline(leases, InlineExecutor(work), "instance", recorder)
    assert [ending.job_id for ending in recorder.ends] == [lease.job_id for lease in leases]
    assert [ending.reason for ending in recorder.ends] == ["", "launch_error", "not_permitted", ""]
    assert all(ending.cleaned_up for ending in recorder.ends)


# The log


def test_what_its_threads_log_says_whose_it_is(new_run, recorder, world):
    seen: list[tuple[str, dict[str, object]]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.getMessage(), journal.context()))

    def broken(_spec):
        raise RuntimeError("a bug")

    world.on_create = broken
    logger, handler = logging.getLogger("container_manager"), Keeping()
    logger.addHandler(handler)
    try:
        made = new_run()
        made.thread.start()
        made.thread.join(30)
    finally:
        logger.removeHandler(handler)
    ((message, about),) = seen
    assert message == f"Job {made.lease.job_id}: its thread failed; the attempt is given up"
    assert about == {"job": made.lease.job_id, "attempt": made.lease.attempt}
    assert journal.context() == {}
