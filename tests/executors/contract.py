"""The suite that every executor passes.

A test class inherits it and provides the fixture `executor`; where its jobs need more than a
command (an image, say) it names that in `spec_defaults`, or overrides the fixture `make_spec`:

    class TestOurs(ExecutorContract):
        spec_defaults = {"image": "busybox"}

        @pytest.fixture
        def executor(self): ...

Jobs are `/bin/sh -c` scripts that run alike on the host and in a busybox container.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from container_manager.executors.base import (
    CHUNK_BYTES,
    Barred,
    Chunk,
    Execution,
    Executor,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.states import Reason

MakeSpec = Callable[..., JobSpec]

HANG_SECONDS = 60
"""Only a guard against a hang; nothing is measured against it."""


@dataclass(frozen=True)
class Run:
    """A job that was run from start to end."""

    execution: Execution
    outcome: Outcome
    stdout: bytes
    stderr: bytes


def until(condition: Callable[[], Any], *, what: str = "the condition") -> Any:
    """Poll until `condition()` is true; return what it gave."""
    deadline = monotonic() + HANG_SECONDS
    while not (answer := condition()):
        assert monotonic() < deadline, f"waited {HANG_SECONDS} s for {what}"
        sleep(0.01)
    return answer


def create(executor: Executor, spec: JobSpec) -> Execution:
    return executor.create_or_adopt(spec, timeout=HANG_SECONDS, cancelled=threading.Event())


def launch(executor: Executor, spec: JobSpec) -> Execution:
    return executor.start(create(executor, spec))


def read(
    executor: Executor, execution: Execution, offsets: Mapping[str, int] | None = None
) -> dict[str, bytes]:
    """Everything from the offsets on, once the execution has ended."""
    output = {"stdout": b"", "stderr": b""}
    for chunk in executor.attach(execution, offsets or {}):
        output[chunk.stream] += chunk.data
    return output


def finish(executor: Executor, spec: JobSpec) -> Run:
    execution = launch(executor, spec)
    output = read(executor, execution)
    return Run(execution, executor.collect(execution), output["stdout"], output["stderr"])


def wait_for_output(executor: Executor, execution: Execution, wanted: bytes) -> None:
    """Follow the job's stdout until it said `wanted`."""
    seen = b""
    for chunk in executor.attach(execution, {}):
        seen += chunk.data if chunk.stream == "stdout" else b""
        if wanted in seen:
            return
    raise AssertionError(f"the job ended and never said {wanted!r}, only {seen!r}")


def reason_of(executor: Executor, spec: JobSpec) -> Reason | None:
    """Why it came to nothing, whether the launch was refused or the outcome says so."""
    try:
        return finish(executor, spec).outcome.reason
    except LaunchFailed as refusal:
        return refusal.reason


def a_number_like_no_other() -> str:
    """Seconds for a `sleep` that can be told from everybody else's in the process list."""
    return str(10**8 + uuid.uuid4().int % 10**9)


def processes_with(argument: str) -> list[int]:
    """Processes of this machine, containers' included, that have this command line argument."""
    return [int(path.parent.name) for path in _command_lines() if argument in _arguments(path)]


def _command_lines() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*/cmdline")


def _arguments(command_line: Path) -> list[str]:
    try:
        return command_line.read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


class ExecutorContract:
    """What every executor promises; see `container_manager.executors.base`."""

    spec_defaults: Mapping[str, Any] = {}
    given_environment = frozenset(
        {"PATH", "HOME", "HOSTNAME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_"}
    )
    """Variables a job may see without having named them."""
    short_jobs = 20

    @pytest.fixture
    def instance(self) -> str:
        return f"test-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def make_spec(self, instance: str) -> MakeSpec:
        def make(command: str | Sequence[str], **changes: Any) -> JobSpec:
            job_id = str(uuid.uuid4())
            words = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command)
            attempt = changes.get("attempt", 1)
            fields = {
                "name": f"cm-{job_id}-{attempt}",
                "instance": instance,
                "job_id": job_id,
                "attempt": attempt,
                "command": words,
                **self.spec_defaults,
                **changes,
            }
            return JobSpec(**fields)

        return make

    @pytest.fixture(autouse=True)
    def nothing_left_behind(self, executor: Executor, make_spec: MakeSpec) -> Iterator[None]:
        yield
        instance = make_spec("true").instance
        for name in executor.list_names(instance):
            self._clear_away(executor, name, instance)

    def _clear_away(self, executor: Executor, name: str, instance: str) -> None:
        execution = executor.find(name, instance) or Execution(name=name, execution_id="")
        if execution.running:
            executor.stop(execution, grace=0)
        executor.remove(execution)

    # how it ended

    @pytest.mark.parametrize("code", [0, 3, 255])
    def test_the_exit_code_is_told(
        self, executor: Executor, make_spec: MakeSpec, code: int
    ) -> None:
        outcome = finish(executor, make_spec(f"exit {code}")).outcome

        assert outcome.exit_code == code
        assert outcome.signal is None
        assert outcome.reason == (Reason.EXIT_CODE if code else None)
        assert bool(outcome.error) == bool(code)
        assert not outcome.oom_killed

    def test_a_job_that_kills_itself_died_of_the_signal(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        outcome = finish(executor, make_spec("kill -9 $$")).outcome

        assert (outcome.exit_code, outcome.signal, outcome.reason) == (137, 9, Reason.SIGNAL)
        assert not outcome.oom_killed
        assert outcome.error

    def test_a_command_that_does_not_exist_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 26: 127 by the shell's convention."""
        assert reason_of(executor, make_spec(["no-such-command"])) == Reason.COMMAND_NOT_FOUND

    def test_a_path_that_does_not_exist_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        assert reason_of(executor, make_spec(["/no/such/file"])) == Reason.COMMAND_NOT_FOUND

    def test_a_file_that_cannot_be_executed_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 26: 126 by the shell's convention."""
        assert reason_of(executor, make_spec(["/etc/passwd"])) == Reason.NOT_EXECUTABLE

    def test_times_are_utc_and_in_order(self, executor: Executor, make_spec: MakeSpec) -> None:
        outcome = finish(executor, make_spec("sleep 0.05")).outcome

        assert outcome.started_at is not None
        assert outcome.ended_at is not None
        assert outcome.started_at.tzinfo is UTC
        assert outcome.ended_at.tzinfo is UTC
        assert timedelta(0) < outcome.ended_at - outcome.started_at < timedelta(minutes=1)

    def test_the_evidence_can_be_read_again_until_it_is_removed(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        run = finish(executor, make_spec("printf twice; exit 4"))

        assert executor.collect(run.execution) == run.outcome
        assert read(executor, run.execution)["stdout"] == b"twice"

    def test_a_job_that_needs_too_much_memory_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 24: the main process's child takes too much, and it dies of it.

        A moment later: an engine may miss what the kernel tells it beside the end.
        """
        if "memory_limit_mb" not in executor.capabilities().limits:
            pytest.skip("this executor does not limit memory here")
        greedy = "head -c 400000000 /dev/zero | tail -c 300000000 >/dev/null"
        spec = make_spec(f"{greedy}; code=$?; sleep 1; exit $code", memory_limit_mb=32)

        outcome = finish(executor, spec).outcome

        assert outcome.oom_killed
        assert (outcome.exit_code, outcome.reason) == (137, Reason.OOM)

    # what it is given

    def test_a_job_sees_only_the_environment_it_names(
        self, executor: Executor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_WORKER", "hidden")
        spec = make_spec("env", environment={"GREETING": "good = morning", "EMPTY": ""})

        lines = finish(executor, spec).stdout.decode().splitlines()

        seen = dict(line.split("=", 1) for line in lines)
        assert (seen["GREETING"], seen["EMPTY"]) == ("good = morning", "")
        assert set(seen) - {"GREETING", "EMPTY"} <= self.given_environment

    def test_the_job_decides_on_its_own_path(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec('printf "%s" "$PATH"', environment={"PATH": "/mine:/bin:/usr/bin"})

        assert finish(executor, spec).stdout == b"/mine:/bin:/usr/bin"

    def test_a_job_runs_in_its_working_directory(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        assert finish(executor, make_spec("pwd", working_dir="/tmp")).stdout == b"/tmp\n"

    def test_standard_input_is_empty(self, executor: Executor, make_spec: MakeSpec) -> None:
        assert finish(executor, make_spec("cat; printf end")).stdout == b"end"

    def test_arguments_are_passed_as_they_are(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        words = ["$HOME", "two words", "", "*", "'", "ü"]
        spec = make_spec(["/bin/sh", "-c", 'printf "[%s]" "$@"', "sh", *words])

        assert finish(executor, spec).stdout.decode() == "".join(f"[{word}]" for word in words)

    # what it says

    def test_the_two_streams_are_kept_apart(self, executor: Executor, make_spec: MakeSpec) -> None:
        run = finish(executor, make_spec("echo out; echo err >&2; printf tail; printf rest >&2"))

        assert (run.stdout, run.stderr) == (b"out\ntail", b"err\nrest")

    def test_every_byte_value_comes_through(self, executor: Executor, make_spec: MakeSpec) -> None:
        """Row 29: NUL and what is no UTF-8."""
        every_byte = bytes(range(256))
        script = "".join(_print_byte(byte) for byte in every_byte)

        assert finish(executor, make_spec(script)).stdout == every_byte

    def test_a_script_may_open_its_own_standard_output_anew(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        script = "echo a; echo b > /dev/stdout; echo c > /dev/stderr; echo d > /dev/stderr"

        run = finish(executor, make_spec(script))

        assert (run.stdout, run.stderr) == (b"a\nb\n", b"c\nd\n")

    def test_a_very_short_job_loses_nothing(self, executor: Executor, make_spec: MakeSpec) -> None:
        """Row 27: it has ended before anybody attached; no last newline."""
        for number in range(self.short_jobs):
            run = finish(executor, make_spec(f"printf {number}; printf e{number} >&2"))

            assert (run.stdout, run.stderr) == (b"%d" % number, b"e%d" % number)
            executor.remove(run.execution)

    def test_much_output_comes_through_whole_and_in_small_chunks(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        size = 3_000_000
        execution = launch(executor, make_spec(f"yes 0123456789abcde | head -c {size}"))

        chunks = list(executor.attach(execution, {}))

        assert max(len(chunk.data) for chunk in chunks) <= CHUNK_BYTES
        assert _offsets_are_right(chunks)
        assert b"".join(chunk.data for chunk in chunks) == (b"0123456789abcde\n" * size)[:size]

    def test_attach_gives_exactly_the_rest(self, executor: Executor, make_spec: MakeSpec) -> None:
        execution = launch(executor, make_spec("printf 0123456789; printf abcdef >&2"))
        executor.collect(execution)

        chunks = list(executor.attach(execution, {"stdout": 7, "stderr": 2}))

        assert {(c.stream, c.offset, c.data) for c in chunks} == {
            ("stdout", 7, b"789"),
            ("stderr", 2, b"cdef"),
        }

    def test_attach_may_start_at_the_very_end(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        run = finish(executor, make_spec("printf 0123456789"))

        assert list(executor.attach(run.execution, {"stdout": 10})) == []

    def test_attach_follows_while_the_job_runs(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec("printf first; sleep 600 & wait"))

        wait_for_output(executor, execution, b"first")

        found = executor.find(execution.name, make_spec("true").instance)
        assert found is not None
        assert found.running

    def test_attach_on_a_job_that_ended_long_ago_returns_everything(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 27: attached long after the end."""
        spec = make_spec("printf all")
        executor.collect(launch(executor, spec))
        found = executor.find(spec.name, spec.instance)
        assert found is not None

        assert read(executor, found) == {"stdout": b"all", "stderr": b""}

    def test_a_grandchild_that_holds_the_pipe_open_keeps_nobody_waiting(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 23: the end is the end of the command, not of the pipe."""
        number = a_number_like_no_other()
        run = finish(executor, make_spec(f"sleep {number} & printf done"))

        assert (run.outcome.exit_code, run.stdout) == (0, b"done")
        until(lambda: not processes_with(number), what="the grandchild's end")

    def test_orphans_of_a_job_are_reaped_while_it_runs(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 23: an orphan falls to the job's process 1, or to its supervisor."""
        script = (
            "pid=$(sh -c 'sh -c \"echo \\$\\$; exec sleep 0.1 >/dev/null\" & exit'); "
            "i=0; while [ -e /proc/$pid ] && [ $i -lt 300 ]; do sleep 0.05; i=$((i+1)); done; "
            "[ -e /proc/$pid ] && echo zombie || echo reaped"
        )

        assert finish(executor, make_spec(script)).stdout == b"reaped\n"

    # found again

    def test_an_absent_name_is_not_found(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("true")

        assert executor.find(spec.name, spec.instance) is None

    def test_a_running_job_is_found(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("sleep 600 & wait")
        started = launch(executor, spec)

        found = executor.find(spec.name, spec.instance)

        assert found is not None
        assert (found.running, found.started) == (True, True)
        assert (found.name, found.execution_id) == (spec.name, started.execution_id)
        assert found.started_at is not None
        assert found.started_at.tzinfo is UTC

    def test_an_ended_job_is_found(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("true")
        started = launch(executor, spec)
        executor.collect(started)

        found = executor.find(spec.name, spec.instance)

        assert found is not None
        assert (found.running, found.started) == (False, True)
        assert found.execution_id == started.execution_id

    def test_another_instances_job_is_not_found(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("true")
        create(executor, spec)

        assert executor.find(spec.name, "another-instance") is None

    def test_the_time_since_the_start_grows(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("sleep 600 & wait")
        launch(executor, spec)

        def elapsed() -> float:
            found = executor.find(spec.name, spec.instance)
            assert found is not None
            return found.elapsed_seconds

        first = elapsed()
        assert 0 <= first < HANG_SECONDS
        until(lambda: elapsed() > first, what="the time to go on")

    def test_a_second_create_adopts_the_first(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("printf once; sleep 600 & wait")
        first = create(executor, spec)
        second = create(executor, spec)
        started = executor.start(second)
        third = create(executor, spec)

        assert (first.adopted, second.adopted, third.adopted) == (False, True, True)
        assert first.execution_id == second.execution_id
        assert started.execution_id == third.execution_id
        assert (second.started, third.started, third.running) == (False, True, True)

    def test_a_second_start_does_nothing(self, executor: Executor, make_spec: MakeSpec) -> None:
        execution = create(executor, make_spec("printf once"))
        first = executor.start(execution)
        second = executor.start(execution)
        executor.collect(first)
        third = executor.start(execution)

        assert first.execution_id == second.execution_id == third.execution_id
        assert read(executor, execution)["stdout"] == b"once"

    def test_many_who_create_and_start_at_once_run_it_once(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("printf once")
        together = threading.Barrier(4)

        def create_and_start() -> str:
            together.wait(HANG_SECONDS)
            return launch(executor, spec).execution_id

        with ThreadPoolExecutor(4) as threads:
            ids = {f.result() for f in [threads.submit(create_and_start) for _ in range(4)]}

        assert len(ids) == 1
        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert read(executor, found)["stdout"] == b"once"

    def test_nothing_is_created_once_the_caller_gave_up(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec, cancelled = make_spec("true"), threading.Event()
        cancelled.set()

        with pytest.raises(StartCancelled):
            executor.create_or_adopt(spec, timeout=HANG_SECONDS, cancelled=cancelled)

        assert executor.find(spec.name, spec.instance) is None

    def test_names_are_listed_by_instance(self, executor: Executor, make_spec: MakeSpec) -> None:
        ours, ended, barred = make_spec("sleep 600 & wait"), make_spec("true"), make_spec("true")
        stranger = make_spec("true", instance=f"other-{uuid.uuid4().hex}")
        launch(executor, ours)
        executor.collect(launch(executor, ended))
        executor.bar(barred)
        execution = create(executor, stranger)

        names = executor.list_names(ours.instance)
        executor.remove(execution)

        assert {ours.name, ended.name, barred.name} <= set(names)
        assert stranger.name not in names

    # stopped

    def test_a_job_may_end_well_when_asked_to_stop(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        script = "trap 'printf bye; exit 0' TERM; printf ready; sleep 600 & wait"
        execution = launch(executor, make_spec(script))
        wait_for_output(executor, execution, b"ready")

        assert executor.stop(execution, grace=HANG_SECONDS) is True

        outcome = executor.collect(execution)
        assert (outcome.exit_code, outcome.reason) == (0, None)
        assert read(executor, execution)["stdout"] == b"readybye"

    def test_a_job_that_ignores_the_request_is_killed_after_its_grace(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 23: SIGTERM is ignored."""
        execution = launch(executor, make_spec(_STUBBORN))
        wait_for_output(executor, execution, b"ready")

        assert executor.stop(execution, grace=0.3) is True

        outcome = executor.collect(execution)
        assert (outcome.exit_code, outcome.signal) == (137, 9)
        assert not outcome.oom_killed

    def test_a_stop_without_grace_kills_at_once(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        script = "trap 'exit 0' TERM; printf ready; sleep 600 & wait"
        execution = launch(executor, make_spec(script))
        wait_for_output(executor, execution, b"ready")

        assert executor.stop(execution, grace=0) is True

        assert executor.collect(execution).exit_code == 137

    def test_a_stop_after_the_end_reached_nobody(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec("exit 5"))
        executor.collect(execution)

        assert executor.stop(execution, grace=1) is False
        assert executor.stop(execution, grace=0) is False
        assert executor.collect(execution).exit_code == 5

    def test_a_second_stop_shortens_the_first(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec(_STUBBORN))
        wait_for_output(executor, execution, b"ready")

        with ThreadPoolExecutor(1) as threads:
            patient = threads.submit(executor.stop, execution, grace=3600)
            assert executor.stop(execution, grace=0) is True
            assert patient.result(HANG_SECONDS) is True

        assert executor.collect(execution).exit_code == 137

    def test_nothing_of_a_stopped_job_is_left(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 23: children, sessions of their own, and a double fork."""
        number = a_number_like_no_other()
        script = (
            f"sleep {number} & setsid sleep {number} & (setsid sleep {number} &) ; "
            f"trap '' TERM; (trap '' TERM; sleep {number}) & printf ready; "
            f"while :; do sleep {number} & wait; done"
        )
        execution = launch(executor, make_spec(script))
        wait_for_output(executor, execution, b"ready")
        until(lambda: len(processes_with(number)) >= 5, what="the job's processes")

        executor.stop(execution, grace=0.1)

        assert processes_with(number) == []

    def test_attach_ends_when_the_job_is_stopped(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec(_STUBBORN))
        wait_for_output(executor, execution, b"ready")

        with ThreadPoolExecutor(2) as threads:
            output = threads.submit(read, executor, execution)
            outcome = threads.submit(executor.collect, execution)
            executor.stop(execution, grace=0)

            assert output.result(HANG_SECONDS)["stdout"] == b"ready"
            assert outcome.result(HANG_SECONDS).exit_code == 137

    # removed and barred

    def test_a_removed_job_is_absent(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("echo out")
        execution = finish(executor, spec).execution

        executor.remove(execution)

        assert executor.find(spec.name, spec.instance) is None
        assert spec.name not in executor.list_names(spec.instance)

    def test_removing_twice_is_fine(self, executor: Executor, make_spec: MakeSpec) -> None:
        execution = finish(executor, make_spec("true")).execution

        executor.remove(execution)
        executor.remove(execution)

    def test_a_job_that_never_started_can_be_removed(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("true")
        executor.remove(create(executor, spec))

        assert executor.find(spec.name, spec.instance) is None

    def test_a_barred_name_can_never_be_created(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("true")

        assert executor.bar(spec) is True
        assert executor.bar(spec) is True
        with pytest.raises(Barred):
            create(executor, spec)
        assert executor.find(spec.name, spec.instance) is None

    def test_what_never_started_can_be_discarded_and_never_starts_then(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        created = create(executor, make_spec("true"))

        assert executor.discard(created) is True

        assert executor.find(created.name, make_spec("true").instance) is None
        with pytest.raises(LaunchFailed):
            executor.start(created)

    def test_what_has_started_is_not_discarded(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        running = launch(executor, make_spec("sleep 600 & wait"))

        assert executor.discard(running) is False

        found = executor.find(running.name, make_spec("true").instance)
        assert found is not None
        assert found.running

    def test_the_age_of_an_ended_execution_does_not_grow(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("true")
        finish(executor, spec)
        ages = set()
        for _ in range(3):
            found = executor.find(spec.name, spec.instance)
            assert found is not None
            ages.add(found.elapsed_seconds)
        assert len(ages) == 1

    def test_a_living_name_cannot_be_barred(self, executor: Executor, make_spec: MakeSpec) -> None:
        spec = make_spec("sleep 600 & wait")
        launch(executor, spec)

        assert executor.bar(spec) is False

        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert found.running

    def test_of_a_create_and_a_bar_exactly_one_wins(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        for _ in range(5):
            spec, together = make_spec("true"), threading.Barrier(2)

            def created(spec: JobSpec = spec, together: threading.Barrier = together) -> bool:
                together.wait(HANG_SECONDS)
                try:
                    create(executor, spec)
                except Barred:
                    return False
                return True

            with ThreadPoolExecutor(1) as threads:
                creating = threads.submit(created)
                together.wait(HANG_SECONDS)
                barred = executor.bar(spec)
                assert creating.result(HANG_SECONDS) is not barred

    # who it is

    def test_the_engine_is_always_the_same_one(self, executor: Executor) -> None:
        assert executor.engine_id()
        assert executor.engine_id() == executor.engine_id()
        assert executor.proves_gone(executor.engine_id()) is False


_STUBBORN = "trap '' TERM; printf ready; while :; do sleep 600 & wait; done"


def _print_byte(byte: int) -> str:
    literal = {0x25: "%%", 0x5C: r"\\"}.get(byte, f"\\{byte:03o}")
    return f"printf '{literal}';"


def _offsets_are_right(chunks: list[Chunk]) -> bool:
    ends = [0, *(chunk.offset + len(chunk.data) for chunk in chunks)]
    return [chunk.offset for chunk in chunks] == ends[:-1]
