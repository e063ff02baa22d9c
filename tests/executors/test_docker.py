"""Jobs in containers of a real engine."""

from __future__ import annotations

import io
import itertools
import os
import socket
import struct
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from container_manager.executors import docker
from container_manager.executors.base import (
    LABEL_ATTEMPT,
    LABEL_INSTANCE,
    LABEL_JOB,
    EngineUnavailable,
    Execution,
    JobSpec,
    LaunchFailed,
    StartCancelled,
)
from container_manager.executors.docker import BARRED_IMAGE, DockerExecutor
from container_manager.executors.docker_http import EngineHttp, EngineStream, Reply
from container_manager.states import Reason
from tests.executors.contract import (
    HANG_SECONDS,
    ExecutorContract,
    MakeSpec,
    create,
    finish,
    launch,
    read,
    reason_of,
    until,
    wait_for_output,
)
from tests.support import docker_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(bool(docker_engine.why_not()), reason=docker_engine.why_not()),
]

LONG_LINES = "; ".join(
    f"head -c {size} /dev/zero | tr '\\0' {letter}; echo"
    for size, letter in [(16383, "a"), (16384, "b"), (16385, "c"), (40000, "d"), (32768, "e")]
)


@contextmanager
def _executor(**options: Any) -> Iterator[DockerExecutor]:
    """An executor that is closed at the end."""
    executor = DockerExecutor(**options)
    try:
        yield executor
    finally:
        executor.close()


@pytest.fixture
def executor() -> Iterator[DockerExecutor]:
    with _executor() as executor:
        yield executor


@pytest.fixture
def engine() -> Iterator[EngineHttp]:
    with docker_engine.engine() as http:
        yield http


@pytest.fixture
def line(tmp_path: Path) -> Iterator[docker_engine.FaultyLine]:
    line = docker_engine.FaultyLine(tmp_path)
    yield line
    line.close()


@pytest.fixture
def over_line(line: docker_engine.FaultyLine) -> Iterator[DockerExecutor]:
    """An executor whose calls can be made to fail."""
    with _executor(base_url=line.url, timeout=2) as executor:
        yield executor


def _read_some(whole: Any, pieces: Iterator[int], *given: Any) -> bytes | None:
    """A few pieces, and then nothing more."""
    return None if next(pieces, None) is None else whole(*given)


class TestDockerExecutor(ExecutorContract):
    spec_defaults = {"image": docker_engine.IMAGE}

    # how it is locked in

    def test_a_job_is_locked_in_by_default(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        container = _inspect(engine, create(executor, make_spec("true")))
        config, host = container["Config"], container["HostConfig"]

        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert host["Privileged"] is False
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["ReadonlyRootfs"] is True
        assert host["Tmpfs"] == {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"}
        assert host["PidsLimit"] == 256
        assert host["Memory"] == host["MemorySwap"] == 512 * 1024**2
        assert not host["OomKillDisable"]
        assert host["NanoCpus"] == 10**9
        assert host["Ulimits"] == [{"Name": "nofile", "Soft": 1024, "Hard": 1024}]
        assert host["RestartPolicy"]["Name"] == "no"
        assert host["NetworkMode"] == "none"
        assert config["NetworkDisabled"] is True
        assert host["IpcMode"] == "private"
        assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
        assert not host["Binds"]
        assert not container["Mounts"]
        assert not host["Devices"]
        assert not host["PortBindings"]
        assert not host["GroupAdd"]
        assert host["AutoRemove"] is False
        assert host["LogConfig"]["Type"] == "local"
        assert host["LogConfig"]["Config"]["max-size"] == "32768k"
        assert host["Runtime"] == "runc"
        assert config["User"] == "65534:65534"

    def test_a_container_carries_our_labels_and_the_image_is_recorded(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        spec = make_spec("true", attempt=3)
        execution = create(executor, spec)

        assert _inspect(engine, execution)["Config"]["Labels"] == {
            LABEL_INSTANCE: spec.instance,
            LABEL_JOB: spec.job_id,
            LABEL_ATTEMPT: "3",
        }
        assert execution.image_digest.startswith("sha256:")

    def test_a_job_has_no_power_over_the_machine(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        script = (
            "id -u; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; "
            "touch /x 2>&1; cp /bin/busybox /tmp/b && /tmp/b true 2>&1; ls /sys/class/net"
        )

        said = finish(executor, make_spec(script)).stdout.decode()

        assert said.startswith("65534\n65534\n")
        assert "CapEff:\t0000000000000000" in said
        assert "CapBnd:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert "Seccomp:\t2" in said
        assert "touch: /x: Read-only file system" in said
        assert "/tmp/b: Permission denied" in said
        assert said.endswith("\nlo\n")

    def test_a_job_gets_the_limits_it_names(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        spec = make_spec("true", cpu_limit=0.5, memory_limit_mb=64, pids_limit=16)
        host = _inspect(engine, create(executor, spec))["HostConfig"]

        assert host["Memory"] == host["MemorySwap"] == 64 * 1024**2
        assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 16)

    def test_a_fork_bomb_ends_at_its_limit(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 25: processes."""
        script = "for i in $(seq 50); do sleep 600 & done; echo never"
        run = finish(executor, make_spec(script, pids_limit=12))

        assert run.outcome.exit_code != 0
        assert b"can't fork" in run.stderr
        assert run.stdout == b""

    def test_capabilities_say_what_the_engine_offers(self, executor: DockerExecutor) -> None:
        offered = executor.capabilities()

        assert "container" in offered.isolations
        assert offered.outlives_worker
        assert offered.engine.startswith("Docker ")

    @pytest.mark.parametrize(
        "wish",
        [
            {"network": "host"},
            {"network": "bridge"},
            {"network": "container:other"},
            {"isolation": "process"},
            {"isolation": "microvm"},
            {"cpu_limit": 1000.0},
            {"memory_limit_mb": 1},
            {"working_dir": "relative"},
        ],
        ids=str,
    )
    def test_what_is_not_permitted_is_not_created(
        self, executor: DockerExecutor, make_spec: MakeSpec, wish: dict[str, Any]
    ) -> None:
        spec = make_spec("true", **wish)

        assert reason_of(executor, spec) == Reason.NOT_PERMITTED
        assert executor.find(spec.name, spec.instance) is None

    def test_an_end_behind_a_lost_answer_to_the_start_was_seen_by_nobody(
        self,
        over_line: DockerExecutor,
        line: docker_engine.FaultyLine,
        engine: EngineHttp,
        make_spec: MakeSpec,
    ) -> None:
        """Its engine may have been away: 255 is what an engine makes up for what it lost."""
        created = create(over_line, make_spec("exit 255"))
        line.lose_reply("/start")
        with pytest.raises(EngineUnavailable):
            over_line.start(created)
        until(lambda: _inspect(engine, created)["State"]["Status"] == "exited")

        outcome = over_line.collect(over_line.start(created))

        assert (outcome.exit_code, outcome.reason) == (None, Reason.EXECUTOR_UNAVAILABLE)

    def test_who_adopts_one_whose_start_failed_is_told_why_and_leaves_the_evidence(
        self, make_spec: MakeSpec
    ) -> None:
        spec = replace(make_spec(""), command=("/nowhere",))
        with _executor(init=False) as first, _executor() as adopter:
            created = create(first, spec)
            with pytest.raises(LaunchFailed):
                first.start(created)

            found = adopter.find(spec.name, spec.instance)
            with pytest.raises(LaunchFailed) as failure:
                adopter.discard(found)

            assert failure.value.reason == Reason.COMMAND_NOT_FOUND
            assert adopter.find(spec.name, spec.instance) == found

    def test_a_start_that_nobody_answered_is_not_sent_again(
        self,
        over_line: DockerExecutor,
        line: docker_engine.FaultyLine,
        executor: DockerExecutor,
        make_spec: MakeSpec,
    ) -> None:
        """The engine may have done it, and forgotten it, or may do it yet."""
        spec = make_spec("true")
        created = create(over_line, spec)
        line.hang("/start")
        with pytest.raises(EngineUnavailable):
            over_line.start(created)

        for _ in range(2):  # also when the answer to the removal was lost
            with pytest.raises(LaunchFailed) as lost:
                over_line.start(created)
            assert lost.value.reason == Reason.EXECUTOR_UNAVAILABLE
            assert executor.find(spec.name, spec.instance) is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root may signal what an engine runs")
    def test_what_an_engine_runs_without_knowing_of_it_is_ended(
        self, executor: DockerExecutor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Docker 20.10 forgets what it starts while it is killed; it then takes a removal, too."""
        running = launch(executor, make_spec("sleep 300"))
        with monkeypatch.context() as patch:
            patch.setattr(executor, "_ours", lambda _: None)
            patch.setattr(executor, "_delete", lambda *_, **__: Reply(204, b""))
            assert executor.discard(running) is True
        assert executor.collect(running).exit_code == 137

    def test_an_adopter_whose_first_look_was_lost_did_not_see_the_end(
        self,
        executor: DockerExecutor,
        over_line: DockerExecutor,
        line: docker_engine.FaultyLine,
        make_spec: MakeSpec,
    ) -> None:
        spec = make_spec("exit 255")
        line.lose_reply("/json")
        with pytest.raises(EngineUnavailable):
            over_line.find(spec.name, spec.instance)
        launched = launch(executor, spec)
        assert executor.collect(launched).exit_code == 255

        found = over_line.find(spec.name, spec.instance)

        assert over_line.collect(found).reason == Reason.EXECUTOR_UNAVAILABLE

    @pytest.mark.parametrize("working_dir", ["/bin/sh/x", "/" + "a" * 300])
    def test_a_working_directory_that_cannot_be_is_the_jobs_fault(
        self, executor: DockerExecutor, make_spec: MakeSpec, working_dir: str
    ) -> None:
        with pytest.raises(LaunchFailed) as refusal:
            launch(executor, make_spec("true", working_dir=working_dir))
        assert refusal.value.reason == Reason.NOT_PERMITTED

    def test_the_limits_that_apply_are_told(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        told = executor.applied_limits(make_spec("true", memory_limit_mb=64))
        assert told == {"cpu_limit": 1.0, "memory_limit_mb": 64, "pids_limit": 256}

    def test_a_network_is_given_only_where_it_is_allowed(
        self, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        with _executor(allowed_networks=("bridge",)) as executor:
            container = _inspect(engine, create(executor, make_spec("true", network="bridge")))

        assert container["HostConfig"]["NetworkMode"] == "bridge"
        assert not container["Config"].get("NetworkDisabled")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"base_url": "tcp://127.0.0.1:2375"}, "without TLS"),
            ({"base_url": "http://127.0.0.1:2375"}, "no engine address"),
            ({"base_url": "tcp://127.0.0.1:2376", "tls_certificates": "/nowhere"}, "ca.pem"),
            ({"user": "0:0"}, "root"),
            ({"user": "65534:0"}, "root"),
            ({"user": "nobody"}, "numbers"),
            ({"allowed_networks": ("host",)}, "host"),
            ({"allowed_networks": ("container:x",)}, "container:x"),
        ],
        ids=str,
    )
    def test_dangerous_options_are_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            DockerExecutor(**options)

    # strangers

    def test_a_strangers_container_is_never_touched(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        spec = make_spec("true")
        stranger = _create_stranger(engine, spec.name)
        handle = Execution(name=spec.name, execution_id=stranger)
        try:
            with pytest.raises(LaunchFailed) as refusal:
                create(executor, spec)
            assert executor.find(spec.name, spec.instance) is None
            assert executor.list_names(spec.instance) == []
            assert executor.stop(handle, grace=0) is False
            executor.remove(handle)
            with pytest.raises(LaunchFailed):
                executor.start(handle)

            assert refusal.value.reason == Reason.NOT_PERMITTED
            assert engine.call("GET", f"/containers/{stranger}/json").ok
        finally:
            engine.call("DELETE", f"/containers/{stranger}", {"force": "1"})

    def test_another_instances_attempt_of_that_name_is_not_adopted(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        other = make_spec("true", instance=f"other-{uuid.uuid4().hex}")
        theirs = create(executor, other)
        try:
            with pytest.raises(LaunchFailed) as refusal:
                create(executor, make_spec("true", name=other.name))
            assert refusal.value.reason == Reason.NOT_PERMITTED
        finally:
            executor.remove(theirs)

    # output

    def test_long_lines_are_whole_while_followed_and_when_read_again(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 28: lines of 16 KiB less one, 16 KiB, and one more."""
        script = f"{LONG_LINES}; echo; echo; ({LONG_LINES}) >&2; printf 'x\\0\\377'; printf y >&2"
        run = finish(executor, make_spec(script))
        lines = [b"a" * 16383, b"b" * 16384, b"c" * 16385, b"d" * 40000, b"e" * 32768]
        long_lines = b"".join(line + b"\n" for line in lines)

        assert run.stdout == long_lines + b"\n\nx\0\xff"
        assert run.stderr == long_lines + b"y"
        assert read(executor, run.execution) == {"stdout": run.stdout, "stderr": run.stderr}

    def test_output_can_be_resumed_at_every_byte_of_a_long_line(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        run = finish(executor, make_spec(f"{LONG_LINES}; printf end"))

        for offset in (1, 16383, 16384, 32767, 32768, 32769, 49155, 65536, 121_000):
            rest = read(executor, run.execution, {"stdout": offset})
            assert rest["stdout"] == run.stdout[offset:]

    def test_another_worker_goes_on_where_the_first_one_stopped(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        script = (
            "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; sleep 0.3; echo end"
        )
        spec = make_spec(script)
        with _executor() as first:
            chunks = first.attach(launch(first, spec), {})
            told = next(c.data for c in chunks)
            chunks.close()  # type: ignore[attr-defined]
        adopted = create(executor, spec)

        rest = read(executor, adopted, {"stdout": len(told)})["stdout"]

        expected = b"".join(b"line %d\n" % number for number in range(2000)) + b"end\n"
        assert adopted.adopted
        assert told + rest == expected

    def test_a_silent_job_is_followed_to_its_end(self, make_spec: MakeSpec) -> None:
        with _executor() as executor:
            executor._silence = 0.2
            run = finish(executor, make_spec("printf a; sleep 1; printf b"))
            again = read(executor, run.execution)

        assert run.stdout == b"ab"
        assert again["stdout"] == b"ab"

    def test_a_silent_job_can_be_adopted_and_followed(self, make_spec: MakeSpec) -> None:
        spec = make_spec("sleep 1; printf end")
        with _executor() as first, _executor() as second:
            second._silence = 0.2
            launch(first, spec)
            adopted = create(second, spec)

            assert read(second, adopted)["stdout"] == b"end"

    def test_output_that_an_engine_still_held_back_at_the_end_is_not_lost(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """It stood still, or was slow: it tells of the end before it hands on what was printed."""
        execution = create(executor, make_spec("printf all"))
        execution = executor.start(execution)
        held_back = executor._live[execution.execution_id].stream
        held_back.read = lambda seconds: sleep(0.01)  # type: ignore[assignment, method-assign, func-returns-value]

        assert read(executor, execution)["stdout"] == b"all"

    def test_a_log_in_whose_middle_the_engine_falls_silent_is_not_taken_for_whole(
        self, executor: DockerExecutor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = finish(executor, make_spec("yes | head -c 1000000"))
        whole, pieces = EngineStream.read, iter(range(3))
        falls_silent = partial(_read_some, whole, pieces)
        monkeypatch.setattr(EngineStream, "read", lambda *given: falls_silent(*given))

        with pytest.raises(EngineUnavailable, match="fell silent"):
            read(executor, run.execution)
        monkeypatch.setattr(EngineStream, "read", whole)
        assert len(read(executor, run.execution)["stdout"]) == 1_000_000

    def test_what_ended_with_its_machine_was_not_the_jobs_fault(
        self, executor: DockerExecutor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The machine came up after the end, or between start and end; it cannot be done here."""
        stopped = finish(executor, make_spec("kill -TERM $$; sleep 5")).execution
        unknown = finish(executor, make_spec("sleep 1.2; exit 255")).execution
        own = finish(executor, make_spec("exit 3")).execution
        assert executor.collect(stopped).reason == Reason.SIGNAL
        assert executor.collect(unknown).reason == Reason.EXIT_CODE
        started = unknown.started_at
        assert started is not None

        monkeypatch.setattr(docker, "_booted_at", lambda: started + timedelta(seconds=1))
        lost = executor.collect(unknown)
        assert (lost.exit_code, lost.reason) == (None, Reason.EXECUTOR_UNAVAILABLE)
        taken = executor.collect(stopped)
        assert (taken.exit_code, taken.reason) == (143, Reason.EXECUTOR_UNAVAILABLE)
        assert executor.collect(own).exit_code == 3
        monkeypatch.setattr(docker, "_booted_at", lambda: datetime.now(UTC))
        assert executor.collect(unknown).exit_code == 255

    def test_it_is_known_when_this_machine_came_up(self) -> None:
        booted = docker._booted_at()
        assert booted is not None
        assert booted < datetime.now(UTC)

    def test_a_log_that_the_engine_refuses_is_not_taken_for_an_empty_one(
        self, over_line: DockerExecutor, make_spec: MakeSpec, line: docker_engine.FaultyLine
    ) -> None:
        run = finish(over_line, make_spec("printf all"))
        line.fail("/logs")

        with pytest.raises(EngineUnavailable):
            read(over_line, run.execution)
        assert read(over_line, run.execution)["stdout"] == b"all"

    def test_a_job_that_closes_its_streams_is_watched_until_it_ends(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec("printf a; exec >&- 2>&-; sleep 0.5; exit 6"))

        assert read(executor, execution)["stdout"] == b"a"
        assert executor.find(execution.name, make_spec("true").instance).running is False  # type: ignore[union-attr]

    def test_output_that_nobody_reads_does_not_hold_the_job_up(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        execution = launch(executor, make_spec("head -c 6000000 /dev/zero; exit 4"))

        with ThreadPoolExecutor(1) as threads:
            outcome = threads.submit(executor.collect, execution).result(HANG_SECONDS)

        assert outcome.exit_code == 4

    def test_a_slow_reader_holds_the_job_up_and_loses_nothing(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 28: back-pressure up to the job itself."""
        size = 80_000_000  # more than the log keeps
        execution = launch(executor, make_spec(f"head -c {size} /dev/zero"))
        chunks = executor.attach(execution, {})
        told = len(next(iter(chunks)).data)

        assert executor.find(execution.name, make_spec("true").instance).running  # type: ignore[union-attr]
        assert told + sum(len(chunk.data) for chunk in chunks) == size

    # behind our back

    def test_a_container_that_somebody_removed_is_told_as_lost(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        execution = launch(executor, make_spec("printf out; sleep 600"))
        wait_for_output(executor, execution, b"out")
        engine.call("DELETE", f"/containers/{execution.execution_id}", {"force": "1"})

        assert list(executor.attach(execution, {})) == []
        outcome = executor.collect(execution)
        assert (outcome.exit_code, outcome.reason) == (None, Reason.WORKER_LOST)
        assert executor.stop(execution, grace=1) is False
        with pytest.raises(LaunchFailed):
            executor.start(execution)

    @pytest.mark.parametrize("grace", [0, 0.2])
    def test_a_paused_container_can_be_stopped(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp, grace: float
    ) -> None:
        execution = launch(executor, make_spec("trap '' TERM; printf ready; sleep 600 & wait"))
        wait_for_output(executor, execution, b"ready")
        engine.call("POST", f"/containers/{execution.execution_id}/pause")

        assert executor.stop(execution, grace=grace) is True
        assert not executor.collect(execution).oom_killed

    def test_a_stop_before_the_start_prevents_it(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 30: a stop between creating and starting."""
        execution = create(executor, make_spec("true"))

        assert executor.stop(execution, grace=5) is False
        with pytest.raises(LaunchFailed):
            executor.start(execution)

    def test_a_job_that_ended_just_before_the_kill_is_told_as_it_ended(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Rows 24 and 30: the end was first."""
        for _ in range(5):
            execution = launch(executor, make_spec("exit 7"))
            killed = executor.stop(execution, grace=0)

            assert killed == (executor.collect(execution).exit_code == 137)

    def test_a_job_that_ended_between_two_starts_is_not_run_again(
        self, executor: DockerExecutor, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        execution = create(executor, make_spec("printf once"))
        attach, threads = executor._open_live, ThreadPoolExecutor(1)

        def start_elsewhere_meanwhile(container_id: str) -> Any:
            monkeypatch.undo()
            other = threads.submit(lambda: executor.collect(executor.start(execution)))
            wait([other], timeout=1)
            return attach(container_id)

        monkeypatch.setattr(executor, "_open_live", start_elsewhere_meanwhile)
        with threads:
            executor.start(execution)

        executor.collect(execution)
        assert read(executor, execution)["stdout"] == b"once"

    # how it failed

    def test_without_an_init_the_engine_itself_refuses_and_remembers(
        self, make_spec: MakeSpec
    ) -> None:
        with _executor(init=False) as executor:
            execution = create(executor, make_spec(["/no/such/file"]))
            with pytest.raises(LaunchFailed) as first:
                executor.start(execution)
            with pytest.raises(LaunchFailed) as second:
                executor.start(execution)
            outcome = executor.collect(execution)

        assert first.value.reason == second.value.reason == outcome.reason
        assert outcome.reason == Reason.COMMAND_NOT_FOUND
        assert outcome.started_at is None

    def test_a_job_that_exits_like_a_missing_command_is_not_taken_for_one(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        assert reason_of(executor, make_spec("echo gone >&2; exit 127")) == Reason.EXIT_CODE

    def test_a_child_that_ran_out_of_memory_is_told(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 24: a child only; the exit code is the main process's own."""
        script = "tail -c 300000000 /dev/zero; sleep 1; exit 3"
        outcome = finish(executor, make_spec(script, memory_limit_mb=32)).outcome

        assert (outcome.exit_code, outcome.signal) == (3, None)
        assert (outcome.oom_killed, outcome.reason) == (True, Reason.OOM)
        assert "32 MB" in outcome.error

    def test_running_out_of_memory_stays_in_the_evidence_of_a_kill(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 24: 137 twice over; whose doing the end was is for the caller to judge."""
        script = "tail -c 300000000 /dev/zero; printf on; sleep 600 & wait"
        execution = launch(executor, make_spec(script, memory_limit_mb=32))
        wait_for_output(executor, execution, b"on")

        assert executor.stop(execution, grace=0) is True

        outcome = executor.collect(execution)
        assert (outcome.exit_code, outcome.oom_killed) == (137, True)

    def test_a_kill_while_the_memory_runs_out_is_told_as_the_engine_saw_it(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 24: also one that comes at that very moment, where the engine may miss the reason."""
        greedy = "head -c 400000000 /dev/zero | tail -c 300000000 >/dev/null"
        for _ in range(3):
            execution = launch(executor, make_spec(["sh", "-c", greedy], memory_limit_mb=16))
            executor.stop(execution, grace=0)

            outcome = executor.collect(execution)
            assert outcome.exit_code == 137
            assert outcome.reason == (Reason.OOM if outcome.oom_killed else Reason.SIGNAL)
        assert executor.stop(execution, grace=0) is False

    def test_what_was_made_for_another_processor_is_not_executable(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        """Row 26: `exec format error`. The shell is foreign, too: the init would try it else."""
        image = f"cm-test/foreign:{uuid.uuid4().hex}"
        _import_image(engine, image, dict.fromkeys(["x", "bin/sh"], _ELF_FOR_ANOTHER_PROCESSOR))
        try:
            spec = make_spec(["/x"], image=image)
            assert reason_of(executor, spec) == Reason.NOT_EXECUTABLE
            executor.remove(Execution(name=spec.name, execution_id=""))
        finally:
            engine.call("DELETE", f"/images/{image}")

    def test_a_container_that_fills_its_disk_fails_by_itself(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 25: all that can be written to is /tmp, and it has a size."""
        fill = "head -c 200000000 /dev/zero > /tmp/x; echo $?; cp /tmp/x /x; wc -c < /tmp/x; exit 5"
        run = finish(executor, make_spec(fill))

        assert run.stdout == b"1\n%d\n" % (64 * 1024**2)
        assert b"Read-only file system" in run.stderr
        assert run.outcome.exit_code == 5

    def test_a_container_that_takes_all_files_there_are_takes_only_its_own(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 25."""
        script = (
            "awk 'BEGIN { for (i = 0; i < 5000; i++) print i > (\"/tmp/\" i) }'; ls /tmp | wc -l"
        )
        run = finish(executor, make_spec(script))

        assert b"Too many open files" in run.stderr
        assert 900 < int(run.stdout) < 1024

    def test_a_container_that_was_never_started_has_no_exit_code(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        outcome = executor.collect(create(executor, make_spec("true")))

        assert (outcome.exit_code, outcome.reason) == (None, Reason.LAUNCH_ERROR)

    # images

    def test_an_image_that_may_not_be_pulled_is_not_pulled(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 26: it is missing."""
        spec = make_spec("true", image="127.0.0.1:9/no/such:image", pull_policy="never")

        assert reason_of(executor, spec) == Reason.IMAGE_NOT_FOUND

    @pytest.mark.parametrize("image", ["UPPER", "a b", "-v", "x?y=/../..", "a:b:c", "é"])
    def test_what_is_no_image_name_is_an_image_not_found(
        self, executor: DockerExecutor, make_spec: MakeSpec, image: str
    ) -> None:
        assert reason_of(executor, make_spec("true", image=image)) == Reason.IMAGE_NOT_FOUND

    @pytest.mark.parametrize("policy", ["missing", "always"])
    def test_an_image_that_the_registry_does_not_have(
        self, executor: DockerExecutor, make_spec: MakeSpec, policy: str
    ) -> None:
        """Row 26: missing also there."""
        unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        with docker_engine.registry(
            partial(docker_engine.reply, status=404, body=unknown)
        ) as address:
            spec = make_spec("true", image=f"{address}/no/such", pull_policy=policy)

            assert reason_of(executor, spec) == Reason.IMAGE_NOT_FOUND

    def test_a_registry_that_wants_credentials_is_named_as_such(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 26: no auth."""
        denied = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        answer = partial(docker_engine.reply, status=401, body=denied)
        with (
            docker_engine.registry(answer) as address,
            pytest.raises(LaunchFailed, match="credentials") as refusal,
        ):
            create(executor, make_spec("true", image=f"{address}/private"))

        assert refusal.value.reason == Reason.IMAGE_NOT_FOUND

    def test_an_image_for_other_processors_only_is_not_found(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 26: wrong architecture, told by the registry."""
        with docker_engine.registry(docker_engine.offer_another_processor) as address:
            spec = make_spec("true", image=f"{address}/foreign")

            assert reason_of(executor, spec) == Reason.IMAGE_NOT_FOUND

    def test_a_registry_that_is_down_is_not_the_jobs_fault(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Row 26: registry down."""
        spec = make_spec("true", image=f"127.0.0.1:{_unused_port()}/image")

        reason = reason_of(executor, spec)

        assert reason == Reason.LAUNCH_ERROR
        assert not reason.is_permanent

    def test_a_pull_that_hangs_ends_at_the_start_deadline(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        """Rows 26 and 30: a pull that hangs."""
        over = threading.Event()
        with docker_engine.registry(lambda _: over.wait(HANG_SECONDS)) as address:
            spec = make_spec("true", image=f"{address}/slow")
            with pytest.raises(LaunchFailed) as refusal:
                executor.create_or_adopt(spec, timeout=0.5, cancelled=threading.Event())
            over.set()

        assert refusal.value.reason == Reason.START_TIMEOUT

    def test_a_pull_can_be_given_up(self, executor: DockerExecutor, make_spec: MakeSpec) -> None:
        """Row 30: a stop during the pull."""
        asked, over, cancelled = threading.Event(), threading.Event(), threading.Event()

        def hang(_: object) -> None:
            asked.set()
            over.wait(HANG_SECONDS)

        with docker_engine.registry(hang) as address, ThreadPoolExecutor(1) as threads:
            spec = make_spec("true", image=f"{address}/slow")
            creating = threads.submit(
                executor.create_or_adopt, spec, timeout=HANG_SECONDS, cancelled=cancelled
            )
            assert asked.wait(HANG_SECONDS)
            cancelled.set()
            with pytest.raises(StartCancelled):
                creating.result(HANG_SECONDS)
            over.set()

    def test_always_adopts_what_is_there_without_asking_the_registry(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        spec = make_spec("true")
        create(executor, spec)
        again = make_spec(
            "true", name=spec.name, job_id=spec.job_id, pull_policy="always", image=_nowhere()
        )

        assert create(executor, again).adopted

    def test_a_name_can_be_barred_when_the_engine_has_no_image_for_it(
        self, executor: DockerExecutor, make_spec: MakeSpec, engine: EngineHttp
    ) -> None:
        engine.call("DELETE", f"/images/{BARRED_IMAGE}")
        spec = make_spec("true", image=_nowhere())

        assert executor.bar(spec) is True
        assert executor.list_names(spec.instance) == [spec.name]
        executor.remove(Execution(name=spec.name, execution_id=""))
        assert executor.list_names(spec.instance) == []

    # the line to the engine

    def test_a_create_whose_reply_was_lost_is_adopted(
        self, over_line: DockerExecutor, make_spec: MakeSpec, line: docker_engine.FaultyLine
    ) -> None:
        spec = make_spec("printf once")
        line.lose_reply("/containers/create")
        with pytest.raises(EngineUnavailable):
            create(over_line, spec)

        run = finish(over_line, spec)

        assert run.execution.adopted
        assert run.stdout == b"once"

    @pytest.mark.parametrize("fault", ["lose_reply", "fail"])
    def test_a_start_without_an_answer_can_be_repeated(
        self,
        over_line: DockerExecutor,
        make_spec: MakeSpec,
        line: docker_engine.FaultyLine,
        fault: str,
    ) -> None:
        execution = create(over_line, make_spec("printf once"))
        getattr(line, fault)("/start")
        with pytest.raises(EngineUnavailable):
            over_line.start(execution)

        over_line.start(execution)

        assert over_line.collect(execution).exit_code == 0
        assert read(over_line, execution)["stdout"] == b"once"

    @pytest.mark.parametrize(
        ("words", "call"),
        [
            ("/json", lambda executor, spec: executor.find(spec.name, spec.instance)),
            ("/containers/json", lambda executor, spec: executor.list_names(spec.instance)),
            ("/create", lambda executor, spec: executor.bar(spec)),
            ("/create", create),
            ("/_ping", lambda executor, _: executor.engine_id()),
            ("/info", lambda executor, _: executor.capabilities()),
        ],
        ids=["find", "list_names", "bar", "create", "engine_id", "capabilities"],
    )
    @pytest.mark.parametrize("fault", ["lose_reply", "hang", "fail"])
    def test_no_answer_is_never_a_statement_about_the_job(
        self,
        over_line: DockerExecutor,
        make_spec: MakeSpec,
        line: docker_engine.FaultyLine,
        fault: str,
        words: str,
        call: Callable[[DockerExecutor, JobSpec], object],
    ) -> None:
        getattr(line, fault)(words)

        with pytest.raises(EngineUnavailable):
            call(over_line, make_spec("true"))

    def test_an_engine_that_is_not_there_is_unavailable(
        self, make_spec: MakeSpec, tmp_path: Path
    ) -> None:
        with _executor(base_url=f"unix://{tmp_path}/no.sock") as executor:
            with pytest.raises(EngineUnavailable):
                executor.engine_id()
            with pytest.raises(EngineUnavailable):
                create(executor, make_spec("true"))

    def test_output_goes_on_when_the_line_was_cut(
        self, over_line: DockerExecutor, make_spec: MakeSpec, line: docker_engine.FaultyLine
    ) -> None:
        script = "printf first; until [ -e /tmp/never ]; do sleep 0.2; echo; done & sleep 1; exit 3"
        execution = launch(over_line, make_spec(script))
        told = 0
        output = b""
        for attempt in itertools.count():
            try:
                for chunk in over_line.attach(execution, {"stdout": told}):
                    assert chunk.offset == told
                    told += len(chunk.data)
                    output += chunk.data
                    if attempt == 0:
                        line.cut()
                break
            except EngineUnavailable:
                assert attempt < 10

        assert over_line.collect(execution).exit_code == 3
        assert output == read(over_line, execution)["stdout"]
        assert output.startswith(b"first\n")

    def test_another_engine_behind_the_socket_is_noticed(self, tmp_path: Path) -> None:
        path = tmp_path / "engine.sock"
        with _executor(base_url=f"unix://{path}") as executor:
            with docker_engine.another_engine(path, "ONE"):
                first = executor.engine_id()
            with docker_engine.another_engine(path, "TWO"):
                second = executor.engine_id()

        assert (first, second) == ("ONE@/data", "TWO@/data")

    def test_many_jobs_at_once_share_the_connections(
        self, executor: DockerExecutor, make_spec: MakeSpec
    ) -> None:
        def run(number: int) -> bytes:
            job = finish(executor, make_spec(f"printf {number}"))
            executor.remove(job.execution)
            return job.stdout

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(run, range(12))) == [b"%d" % n for n in range(12)]
        until(lambda: not executor.list_names(make_spec("true").instance), what="the removal")


def _inspect(engine: EngineHttp, execution: Execution) -> dict[str, Any]:
    facts: dict[str, Any] = engine.call("GET", f"/containers/{execution.execution_id}/json").json()
    return facts


def _create_stranger(engine: EngineHttp, name: str) -> str:
    body = {"Image": docker_engine.IMAGE, "Cmd": ["true"], "Labels": {"whose": "somebody's"}}
    reply = engine.call("POST", "/containers/create", {"name": name}, body)
    return str(reply.json()["Id"])


_ELF_FOR_ANOTHER_PROCESSOR = (
    b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 0xF3 ^ 0xFF, 1) + bytes(40)
)
"""The header of a program for a machine that nobody has built yet."""


def _import_image(engine: EngineHttp, image: str, files: dict[str, bytes]) -> None:
    """An image of these files, all of them executable."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    repository, _, tag = image.partition(":")
    query = {"fromSrc": "-", "repo": repository, "tag": tag}
    assert engine.call("POST", "/images/create", query, archive.getvalue()).ok


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _nowhere() -> str:
    return f"127.0.0.1:{_unused_port()}/no/such"
