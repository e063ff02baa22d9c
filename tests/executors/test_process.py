"""The process executor: the contract, and what holds when something around it is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from container_manager.executors import process, supervisor
from container_manager.executors.base import (
    Barred,
    EngineUnavailable,
    Execution,
    Executor,
    ExecutorError,
    JobSpec,
    LaunchFailed,
)
from container_manager.executors.process import ProcessExecutor
from container_manager.states import Reason
from tests.executors.contract import (
    HANG_SECONDS,
    ExecutorContract,
    MakeSpec,
    a_number_like_no_other,
    create,
    finish,
    launch,
    processes_with,
    read,
    reason_of,
    until,
    wait_for_output,
)

ANOTHER_WORKER = """
import sys, threading
from container_manager.executors.base import JobSpec
from container_manager.executors.process import ProcessExecutor

state_dir, name, instance, script, *steps = sys.argv[1:]
executor = ProcessExecutor(state_dir)
spec = JobSpec(name, instance, "job", 1, ("/bin/sh", "-c", script))
execution = executor.create_or_adopt(spec, timeout=60, cancelled=threading.Event())
if "start" in steps:
    executor.start(execution)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def another(state_dir: Path) -> Iterator[Callable[[], ProcessExecutor]]:
    """More executors with the same state directory, as other workers have them."""
    made: list[ProcessExecutor] = []

    def make() -> ProcessExecutor:
        made.append(ProcessExecutor(state_dir))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


@pytest.fixture
def executor(another: Callable[[], ProcessExecutor]) -> ProcessExecutor:
    return another()


@pytest.fixture
def killed_worker(state_dir: Path) -> Callable[..., Execution]:
    """Have a job created, or also started, by a worker that is killed thereafter."""

    def run(spec: JobSpec, *steps: str, number: int = signal.SIGKILL) -> Execution:
        script = spec.command[-1]
        words = [str(state_dir), spec.name, spec.instance, script, *steps]
        with subprocess.Popen(
            [sys.executable, "-c", ANOTHER_WORKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as worker:
            assert worker.stdout
            assert worker.stdout.readline() == b"done\n"
            os.killpg(worker.pid, number)
        return Execution(name=spec.name, execution_id="")

    return run


def journal_of(state_dir: Path, spec: JobSpec) -> dict[str, Any]:
    descriptor = os.open(state_dir / spec.name / supervisor.JOURNAL, os.O_RDONLY)
    try:
        return supervisor.read_journal(descriptor)
    finally:
        os.close(descriptor)


def write(state_dir: Path, spec: JobSpec, what: str, details: Any) -> None:
    path = state_dir / spec.name / supervisor.JOURNAL
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        supervisor.append(descriptor, what, details)
    finally:
        os.close(descriptor)


def supervisor_of(state_dir: Path, spec: JobSpec) -> int:
    return int(journal_of(state_dir, spec)["launching"]["pid"])


def supervisors_below(parent: int) -> list[int]:
    table = supervisor.processes()
    return [process.pid for process in supervisor.family({parent}, table)]


class TestContract(ExecutorContract):
    given_environment = ExecutorContract.given_environment | {"CM_EXECUTION"}

    def test_a_job_that_needs_too_much_memory_is_told_so(
        self, executor: Executor, make_spec: MakeSpec
    ) -> None:
        """Row 24: its allocation fails; what it makes of that is its own affair."""
        greedy = "head -c 400000000 /dev/zero | tail -c 300000000 >/dev/null"

        run = finish(executor, make_spec(greedy, memory_limit_mb=32))

        assert (run.outcome.exit_code, run.outcome.reason) == (1, Reason.EXIT_CODE)
        assert b"memory" in run.stderr


class OnThisMachine:
    """Specs for the tests below; what they leave behind is cleared away as in the contract."""

    instance = ExecutorContract.instance
    make_spec = ExecutorContract.make_spec
    nothing_left_behind = ExecutorContract.nothing_left_behind
    _clear_away = ExecutorContract._clear_away
    spec_defaults = ExecutorContract.spec_defaults


class TestWhenTheWorkerIsKilled(OnThisMachine):
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    def test_the_job_goes_on_and_its_end_is_told_truly(
        self,
        executor: ProcessExecutor,
        make_spec: MakeSpec,
        killed_worker: Callable[..., Execution],
        tmp_path: Path,
        number: int,
    ) -> None:
        gate = tmp_path / "gate"
        spec = make_spec(f"printf a; until [ -e {gate} ]; do sleep 0.01; done; printf b; exit 7")

        killed_worker(spec, "start", number=number)

        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert (found.running, found.adopted) == (True, True)
        gate.touch()
        assert read(executor, found)["stdout"] == b"ab"
        assert executor.collect(found).exit_code == 7

    def test_the_job_can_be_stopped_by_another(
        self,
        executor: ProcessExecutor,
        make_spec: MakeSpec,
        killed_worker: Callable[..., Execution],
    ) -> None:
        spec = make_spec("trap 'exit 9' TERM; printf ready; sleep 600 & wait")
        execution = killed_worker(spec, "start")
        wait_for_output(executor, execution, b"ready")

        assert executor.stop(execution, grace=HANG_SECONDS) is True
        assert executor.collect(execution).exit_code == 9

    def test_a_job_it_had_only_created_is_started_by_another(
        self,
        executor: ProcessExecutor,
        make_spec: MakeSpec,
        killed_worker: Callable[..., Execution],
    ) -> None:
        spec = make_spec("printf once")
        execution = killed_worker(spec)

        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert (found.started, found.running) == (False, False)
        executor.start(found)

        assert read(executor, execution)["stdout"] == b"once"

    def test_supervisors_without_a_job_go(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("true")
        finish(executor, spec)
        idle = supervisor_of(state_dir, spec)
        assert supervisor.Process.read(idle)

        executor.close()

        until(lambda: supervisor.Process.read(idle) is None, what="the supervisor to go")


class TestWhenTheSupervisorIsKilled(OnThisMachine):
    @pytest.mark.parametrize("seen_by", ["its own executor", "another"])
    def test_the_job_is_lost_and_nothing_of_it_is_left(
        self,
        executor: ProcessExecutor,
        another: Callable[[], ProcessExecutor],
        make_spec: MakeSpec,
        state_dir: Path,
        seen_by: str,
    ) -> None:
        number = a_number_like_no_other()
        spec = make_spec(f"setsid sleep {number} & sleep {number} & printf ready; wait")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")
        until(lambda: len(processes_with(number)) == 2, what="the job's processes")
        observer = executor if seen_by == "its own executor" else another()

        os.kill(supervisor_of(state_dir, spec), signal.SIGKILL)
        outcome = observer.collect(execution)

        assert processes_with(number) == []
        assert (outcome.exit_code, outcome.reason) == (None, Reason.WORKER_LOST)
        assert outcome.started_at is not None
        assert outcome.ended_at is not None
        assert outcome.started_at <= outcome.ended_at
        assert executor.find(spec.name, spec.instance) == another().find(spec.name, spec.instance)
        assert read(executor, execution)["stdout"] == b"ready"

    def test_even_what_hid_its_environment_is_found_by_its_session(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        number = a_number_like_no_other()
        spec = make_spec(f"exec env -i sh -c 'printf ready; sleep {number} & wait'")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")
        until(lambda: processes_with(number), what="the job's process")

        os.kill(supervisor_of(state_dir, spec), signal.SIGKILL)

        assert executor.collect(execution).reason == Reason.WORKER_LOST
        assert processes_with(number) == []

    def test_a_stop_of_the_remains_reached_them_alive(
        self,
        executor: ProcessExecutor,
        make_spec: MakeSpec,
        state_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(process, "_ring", lambda *_: None)
        spec = make_spec("printf ready; sleep 600 & wait")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")

        os.kill(supervisor_of(state_dir, spec), signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            stopping = threads.submit(executor.stop, execution, grace=3600)
            until(lambda: "stop" in journal_of(state_dir, spec), what="the request")
            os.kill(supervisor_of(state_dir, spec), signal.SIGKILL)
            assert stopping.result(HANG_SECONDS) is True

        assert executor.collect(execution).exit_code is None

    def test_one_that_does_not_obey_is_ended_together_with_its_job(
        self,
        executor: ProcessExecutor,
        make_spec: MakeSpec,
        state_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        number = a_number_like_no_other()
        spec = make_spec(f"printf ready; sleep {number} & wait")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")
        monkeypatch.setattr(process, "OVERDUE_SECONDS", 0.5)
        monkeypatch.setattr(signal, "SIGCONT", 0)

        os.kill(supervisor_of(state_dir, spec), signal.SIGSTOP)

        assert executor.stop(execution, grace=0) is True
        assert processes_with(number) == []

    def test_the_nursery_is_replaced(self, executor: ProcessExecutor, make_spec: MakeSpec) -> None:
        finish(executor, make_spec("true"))
        nursery = executor._nursery._process
        assert nursery is not None
        for pid in [*supervisors_below(nursery.pid), nursery.pid]:
            os.kill(pid, signal.SIGKILL)
        nursery.wait()

        assert finish(executor, make_spec("exit 2")).outcome.exit_code == 2


class TestWhenALaunchIsCutShort(OnThisMachine):
    def test_what_may_have_been_launched_is_never_launched_again(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        """The supervisor was killed between its note and the launch, or just after it."""
        spec = make_spec("printf twice")
        execution = create(executor, spec)
        write(state_dir, spec, "launching", supervisor.charge())

        started = executor.start(execution)

        assert (started.started, started.running) == (True, False)
        assert read(executor, execution)["stdout"] == b""
        assert executor.collect(execution).reason == Reason.WORKER_LOST

    def test_after_a_reboot_it_is_lost_without_looking_for_processes(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("true")
        execution = create(executor, spec)
        stranger = {"id": "x", "pid": os.getpid(), "start": 1, "at": 1.0, "clock": 1.0}
        write(state_dir, spec, "launching", {**supervisor.charge(), "boot": "an earlier one"})
        write(state_dir, spec, "started", stranger)

        assert executor.collect(execution).reason == Reason.WORKER_LOST

    def test_what_runs_in_another_process_table_is_not_decided_on(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("true")
        create(executor, spec)
        write(state_dir, spec, "launching", {**supervisor.charge(), "namespace": 1})

        with pytest.raises(EngineUnavailable):
            executor.find(spec.name, spec.instance)

        write(state_dir, spec, "ended", {"lost": True, "at": 1.0})

    def test_a_recycled_number_is_not_taken_for_the_job(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("true")
        execution = create(executor, spec)
        with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
            charge = {**supervisor.charge(), "pid": stranger.pid, "start": 1}
            started = {"id": "x", "pid": stranger.pid, "start": 1, "at": 1.0, "clock": 1.0}
            write(state_dir, spec, "launching", charge)
            write(state_dir, spec, "started", started)

            outcome = executor.collect(execution)
            spared = stranger.poll() is None
            stranger.kill()

        assert spared
        assert outcome.reason == Reason.WORKER_LOST

    def test_a_torn_line_does_no_harm(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("exit 6")
        execution = create(executor, spec)
        with (state_dir / spec.name / supervisor.JOURNAL).open("ab") as journal:
            journal.write(b'["ended", {"exit_co')

        executor.start(execution)

        assert executor.collect(execution).exit_code == 6

    def test_a_removal_cut_short_can_be_done_again(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("echo out")
        execution = finish(executor, spec).execution
        (state_dir / spec.name / "stdout").unlink()
        (state_dir / spec.name / supervisor.HOME).rmdir()
        (state_dir / spec.name / supervisor.JOURNAL).unlink()

        assert executor.find(spec.name, spec.instance) is None
        assert executor.bar(spec) is True
        executor.remove(execution)
        assert not (state_dir / spec.name).exists()

    def test_a_creation_cut_short_is_swept_away(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        old, new = state_dir / ".new-old", state_dir / ".new-new"
        for half_made in (old, new):
            half_made.mkdir(parents=True)
            half_made.parent.chmod(0o700)
        os.utime(old, (1, 1))

        executor.find("cm-absent-1", "nobody")

        assert not old.exists()
        assert new.exists()

    def test_a_directory_removed_behind_our_back_is_a_lost_job(
        self,
        executor: ProcessExecutor,
        another: Callable[[], ProcessExecutor],
        make_spec: MakeSpec,
        state_dir: Path,
    ) -> None:
        number = a_number_like_no_other()
        spec = make_spec(f"printf ready; sleep {number} & wait")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")
        (state_dir / spec.name / supervisor.JOURNAL).unlink()

        outcome = another().collect(execution)

        assert (outcome.exit_code, outcome.reason) == (None, Reason.WORKER_LOST)
        assert processes_with(number) == []


class TestStopping(OnThisMachine):
    @pytest.mark.parametrize(("grace", "code"), [(0, 137), (HANG_SECONDS, 4)])
    def test_a_job_that_sleeps_in_a_stop_is_stopped_too(
        self, executor: ProcessExecutor, make_spec: MakeSpec, grace: float, code: int
    ) -> None:
        execution = launch(executor, make_spec("trap 'exit 4' TERM; printf ready; kill -STOP $$"))
        wait_for_output(executor, execution, b"ready")

        assert executor.stop(execution, grace=grace) is True
        assert executor.collect(execution).exit_code == code

    def test_a_kill_in_a_race_with_the_end_is_told_truly(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 30: the deadline at the very end."""
        for _ in range(30):
            execution = launch(executor, make_spec("exit 0"))
            stopped = executor.stop(execution, grace=0)
            code = executor.collect(execution).exit_code

            assert (stopped, code) in {(True, 137), (False, 0)}
            executor.remove(execution)

    def test_who_ended_before_the_request_was_seen_ended_by_himself(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path, tmp_path: Path
    ) -> None:
        """Row 30: the end was first."""
        gate = tmp_path / "gate"
        spec = make_spec(f"until [ -e {gate} ]; do sleep 0.01; done")
        execution = launch(executor, spec)
        main = journal_of(state_dir, spec)["started"]["pid"]

        os.kill(supervisor_of(state_dir, spec), signal.SIGSTOP)
        gate.touch()
        until(lambda: supervisor.Process.read(main).is_zombie, what="the end")

        assert executor.stop(execution, grace=0) is False
        assert executor.collect(execution).exit_code == 0

    def test_what_was_stopped_before_its_start_never_starts(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        execution = create(executor, make_spec("printf ran"))

        assert executor.stop(execution, grace=0) is False
        with pytest.raises(LaunchFailed) as refusal:
            executor.start(execution)

        assert refusal.value.reason == Reason.CANCELLED
        assert read(executor, execution)["stdout"] == b""

    def test_a_running_job_is_not_removed(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("sleep 600 & wait")
        execution = launch(executor, spec)

        with pytest.raises(ExecutorError):
            executor.remove(execution)

        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert found.running

    def test_what_is_gone_cannot_be_stopped(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        assert executor.stop(Execution(make_spec("true").name, ""), grace=0) is False


class TestThoseWhoTryToStay(OnThisMachine):
    """Row 23: nobody of a job outlives it, whatever he does; row 25: nor do very many."""

    def test_who_forks_on_and_on_into_new_sessions_is_caught(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        """Each generation lives for a moment only, and is an orphan in a session of its own."""
        mark = a_number_like_no_other()
        hop = (
            "import os, time\n"
            "for _ in range(4):\n"
            "    if os.fork() == 0: break\n"
            "else: print('ready', flush=True); time.sleep(0.2); os._exit(0)\n"
            f"ends_at = time.monotonic() + {HANG_SECONDS}\n"
            "while time.monotonic() < ends_at:\n"
            "    if os.fork(): os._exit(0)\n"
            "    os.setsid()\n"
        )

        run = finish(executor, make_spec([sys.executable, "-c", hop, mark]))

        assert (run.outcome.exit_code, run.stdout) == (0, b"ready\n")
        assert processes_with(mark) == []

    def test_a_crowd_is_ended_with_one_stop(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        """A fork bomb that ends by itself: nothing here limits how many processes a job has."""
        mark = a_number_like_no_other()
        crowd = f"for _ in $(seq 80); do sleep {mark} & done; wait"
        script = f"trap '' TERM; setsid sh -c '{crowd}' & (sh -c '{crowd}' &); {crowd}"
        execution = launch(executor, make_spec(script))
        until(lambda: len(processes_with(mark)) > 200, what="the crowd")

        assert executor.stop(execution, grace=0) is True

        assert processes_with(mark) == []

    def test_a_stranger_who_writes_on_into_the_jobs_output_keeps_nobody_waiting(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("printf ready; sleep 600 & wait")
        execution = launch(executor, spec)
        wait_for_output(executor, execution, b"ready")
        main = journal_of(state_dir, spec)["started"]["pid"]
        with (
            open(f"/proc/{main}/fd/1", "wb") as pipe,
            subprocess.Popen(["yes"], stdout=pipe) as stranger,
        ):
            executor.stop(execution, grace=0)
            with ThreadPoolExecutor(1) as threads:
                ended = threads.submit(executor.collect, execution)
                try:
                    assert ended.result(HANG_SECONDS).exit_code == 137
                finally:
                    stranger.kill()


class TestTheJobsSurroundings(OnThisMachine):
    def test_it_inherits_three_files(self, executor: ProcessExecutor, make_spec: MakeSpec) -> None:
        """The fourth is the directory that `ls` reads."""
        run = finish(executor, make_spec(["ls", "/proc/self/fd"]))

        assert run.stdout.split() == [b"0", b"1", b"2", b"3"]

    def test_it_has_a_private_directory_that_goes_with_it(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec('pwd; echo "$HOME"; echo "$TMPDIR"; mkdir -p a/b; touch a/b/c; chmod 0 a')

        run = finish(executor, spec)

        home = str(state_dir / spec.name / supervisor.HOME).encode()
        assert run.stdout.splitlines() == [home] * 3
        assert (state_dir / spec.name).stat().st_mode & 0o777 == 0o700
        executor.remove(run.execution)
        assert not (state_dir / spec.name).exists()

    def test_it_cannot_take_another_mark(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec('printf "$CM_EXECUTION"', environment={"CM_EXECUTION": "other"})

        assert finish(executor, spec).stdout.decode() == str(state_dir / spec.name)

    def test_signals_have_their_usual_effect(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        """Two signals belong to the C library and come as they were."""
        own_to_the_library = 0b11 << 31
        script = 'grep -E "^Sig(Blk|Ign)" /proc/self/status'

        words = finish(executor, make_spec(script)).stdout.split()

        assert [int(word, 16) & ~own_to_the_library for word in words[1::2]] == [0, 0]

    def test_its_use_of_the_machine_is_told(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        busy = "head -c 50000000 /dev/zero | tail -c 30000000 | wc -c"

        outcome = finish(executor, make_spec(busy)).outcome

        assert outcome.cpu_seconds
        assert outcome.peak_memory_bytes
        assert outcome.peak_memory_bytes > 30_000_000

    def test_a_script_that_names_no_interpreter_is_not_executable(
        self, executor: ProcessExecutor, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        script = tmp_path / "script"
        script.write_text("echo hello")
        script.chmod(0o755)

        assert reason_of(executor, make_spec([str(script)])) == Reason.NOT_EXECUTABLE

    def test_a_working_directory_that_does_not_exist_is_a_failed_launch(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        with pytest.raises(LaunchFailed, match="/no/such/place: No such file") as refusal:
            finish(executor, make_spec("true", working_dir="/no/such/place"))

        assert refusal.value.reason == Reason.LAUNCH_ERROR

    @pytest.mark.parametrize("command", [(), ("",), ("nul\0byte",)])
    def test_a_command_that_makes_no_sense_is_a_failed_launch(
        self, executor: ProcessExecutor, make_spec: MakeSpec, command: tuple[str, ...]
    ) -> None:
        with pytest.raises(LaunchFailed):
            finish(executor, make_spec(command))

    def test_a_failed_launch_stays_one(
        self,
        executor: ProcessExecutor,
        another: Callable[[], ProcessExecutor],
        make_spec: MakeSpec,
    ) -> None:
        spec = make_spec(["no-such-command"])
        execution = create(executor, spec)
        for worker in (executor, another()):
            with pytest.raises(LaunchFailed, match="no-such-command: no such command"):
                worker.start(execution)

        found = executor.find(spec.name, spec.instance)
        assert found is not None
        assert (found.started, found.running) == (False, False)
        outcome = executor.collect(execution)
        assert (outcome.exit_code, outcome.reason) == (127, Reason.COMMAND_NOT_FOUND)


class TestRoomForOutput(OnThisMachine):
    def test_a_job_that_writes_without_end_is_ended(
        self, state_dir: Path, make_spec: MakeSpec, executor: ProcessExecutor
    ) -> None:
        """Row 28: at a size, of which the job is to blame."""
        strict = ProcessExecutor(state_dir, max_output_bytes=100_000)

        run = finish(strict, make_spec("yes"))
        strict.close()

        assert run.outcome.reason == Reason.OUTPUT_LIMIT
        assert "100000 bytes" in run.outcome.error
        assert len(run.stdout) <= 100_000

    def test_a_job_whose_output_finds_no_space_is_ended(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        spec = make_spec("printf kept >&2; printf lost; sleep 600 & wait")
        execution = create(executor, spec)
        (state_dir / spec.name / "stdout").symlink_to("/dev/full")
        executor.start(execution)

        outcome = executor.collect(execution)

        assert outcome.reason == Reason.DISK_FULL
        assert "No space left" in outcome.error

    def test_no_space_to_create_is_a_failed_launch(
        self, executor: ProcessExecutor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create(executor, make_spec("true"))

        def no_space(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(supervisor, "append", no_space)

        with pytest.raises(LaunchFailed) as refusal:
            create(executor, make_spec("true"))

        assert refusal.value.reason == Reason.DISK_FULL

    def test_a_durable_one_tells_the_same(
        self, state_dir: Path, make_spec: MakeSpec, executor: ProcessExecutor
    ) -> None:
        durable = ProcessExecutor(state_dir, durable=True)

        run = finish(durable, make_spec("printf out; exit 3"))
        durable.close()

        assert (run.outcome.exit_code, run.stdout) == (3, b"out")

    def test_a_stream_of_megabytes_does_not_hide_the_other(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 28: they are read in turns; else who prints on and on would never be heard to err."""
        execution = launch(executor, make_spec("head -c 5000000 /dev/zero; echo wrong >&2"))
        executor.collect(execution)

        told = [(chunk.stream, len(chunk.data)) for chunk in executor.attach(execution, {})]

        before = told[: told.index(("stderr", 6))]
        assert sum(size for _, size in before) == process.TURN_BYTES
        assert sum(size for _, size in told) == 5_000_006


class TestTheStateDirectory:
    def test_a_file_in_its_place_makes_the_engine_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "state").touch()

        with pytest.raises(EngineUnavailable):
            ProcessExecutor(tmp_path / "state").find("cm-1", "i")

    def test_one_that_others_may_write_to_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state").chmod(0o777)

        with pytest.raises(EngineUnavailable, match="not private"):
            ProcessExecutor(tmp_path / "state").list_names("i")

    def test_it_is_made_private(self, tmp_path: Path) -> None:
        ProcessExecutor(tmp_path / "a" / "state").list_names("i")

        assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700

    def test_it_is_where_the_user_keeps_state(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        ProcessExecutor().list_names("i")

        assert (tmp_path / "container-manager" / "executions").is_dir()

    @pytest.mark.parametrize("name", ["../x", "a/b", ".new-1", "", "a\0b"])
    def test_a_name_that_leads_elsewhere_is_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ExecutorError, match="not the name"):
            ProcessExecutor(tmp_path / "state").find(name, "i")

    def test_two_directories_are_two_engines(self, tmp_path: Path) -> None:
        one, same, other = (ProcessExecutor(tmp_path / name) for name in ("a", "a", "b"))

        assert one.engine_id() == same.engine_id() != other.engine_id()
        assert one.engine_id().startswith("host:")

    def test_only_another_boot_of_the_same_machine_is_proven_gone(self, tmp_path: Path) -> None:
        executor = ProcessExecutor(tmp_path / "state")
        ours = executor.engine_id()
        earlier = ours.replace(supervisor.boot_id(), "an-earlier-boot")
        in_a_container = supervisor.pid_namespace() != process.INITIAL_PID_NAMESPACE

        assert executor.proves_gone(earlier) is not in_a_container
        assert executor.proves_gone(ours) is False
        assert executor.proves_gone(earlier.replace("host:", "host:other")) is False
        assert executor.proves_gone("docker:abc") is False


class TestBeingBarred(OnThisMachine):
    def test_it_holds_for_every_worker(
        self,
        executor: ProcessExecutor,
        another: Callable[[], ProcessExecutor],
        make_spec: MakeSpec,
    ) -> None:
        spec = make_spec("true")
        executor.bar(spec)

        with pytest.raises(Barred):
            another().create_or_adopt(spec, timeout=1, cancelled=threading.Event())

    def test_a_late_start_of_a_removed_job_does_nothing(
        self, executor: ProcessExecutor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("printf late")
        execution = create(executor, spec)
        executor.remove(execution)
        executor.bar(spec)

        with pytest.raises(Barred):
            executor.start(execution)


class TestRemoving(OnThisMachine):
    def test_directories_nested_deeper_than_a_recursion_reaches_are_removed(
        self, executor: ProcessExecutor, make_spec: MakeSpec, state_dir: Path
    ) -> None:
        nest = "i=0; while [ $i -lt 1500 ]; do mkdir x && cd x || exit 9; i=$((i+1)); done"
        ended = finish(executor, make_spec(nest))
        assert ended.outcome.exit_code == 0

        executor.remove(ended.execution)

        assert [entry for entry in state_dir.iterdir() if not entry.name.startswith(".")] == []

    def test_a_link_in_the_place_of_its_directory_is_not_followed(
        self, executor: ProcessExecutor, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir(mode=0o500)
        (swapped := tmp_path / "kept").mkdir()
        script = f'cd /; mv "$HOME" {swapped}/home; ln -s {precious} "$HOME"'
        ended = finish(executor, make_spec(script))

        executor.remove(ended.execution)

        assert precious.stat().st_mode & 0o777 == 0o500
