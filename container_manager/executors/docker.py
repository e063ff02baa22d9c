"""Jobs in containers of a Docker engine, through its API.

An execution is a container with the deterministic name and our labels; the engine keeps its state,
its log and its exit code until `remove`. The name is the lock: whoever creates second is told 409
and adopts. Output comes from an attach stream that is opened before the start, and from the log
when it has to be resumed: see `docker_output`.

Every call has a timeout, and only an answer is evidence: silence, a broken connection or a 5xx
is `EngineUnavailable`. A stream that ends says nothing by itself, so the container is asked.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from signal import NSIG, SIGKILL, SIGTERM
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote

from container_manager.executors.base import (
    LABEL_BARRED,
    LABEL_INSTANCE,
    Barred,
    Capabilities,
    Chunk,
    EngineRefused,
    EngineUnavailable,
    Execution,
    Executor,
    JobSpec,
    LaunchFailed,
    Outcome,
    StartCancelled,
)
from container_manager.executors.docker_http import (
    Address,
    EngineHttp,
    EngineStream,
    Reply,
    address_from_environment,
)
from container_manager.executors.docker_output import Frames, Log, Progress
from container_manager.executors.supervisor import processes
from container_manager.faults import reached
from container_manager.states import Isolation, PullPolicy, Reason

BARRED_IMAGE = "container-manager/barred:latest"
RUNTIMES: Mapping[str, str] = {
    Isolation.CONTAINER: "runc",
    Isolation.GVISOR: "runsc",
    Isolation.MICROVM: "kata",
}

_STRONGEST_FIRST = (Isolation.MICROVM, Isolation.GVISOR, Isolation.CONTAINER)
_NEVER_ALLOWED = ("host", "container:")
_REMOVED = "The container was removed by somebody else."
_EMPTY_TAR = bytes(1024)
_POLL_SECONDS = 0.2
_SILENCE_SECONDS = 15.0
_PING_SECONDS = 10.0
_CONTAINER_ID = re.compile("[0-9a-f]{64}")
_SIGKILLED = 137
_UNKNOWN = 255
_UNHEARD = -1
"""In place of a number of losses: it was asked to start, and nobody heard the answer."""
_UNFOLLOWED = "Its engine may have been away when it ended: the last of its output may be missing."
_LOST = "It was lost when its engine went away; how it ended is not known."
_INIT_FAILED = re.compile(rb"\[FATAL tini \(\d+\)\] exec (.*) failed: (.*)\n")
_INIT_CODES = (1, 126, 127)
_START_LOCKS = 64

# The first line whose words all occur in the engine's message says what it means.
_CREDENTIALS = ("unauthorized", "denied", "no basic auth", "authentication required")
_PULL_FAILURES = (
    *(((words,), Reason.IMAGE_NOT_FOUND) for words in _CREDENTIALS),
    (("manifest unknown",), Reason.IMAGE_NOT_FOUND),
    (("no matching manifest",), Reason.IMAGE_NOT_FOUND),
    (("does not exist",), Reason.IMAGE_NOT_FOUND),
    (("not found",), Reason.IMAGE_NOT_FOUND),
    (("invalid reference format",), Reason.IMAGE_NOT_FOUND),
    (("no space left",), Reason.DISK_FULL),
)
_LONGEST_DIGEST = 255
_CREATE_FAILURES = (
    (("invalid reference format",), Reason.IMAGE_NOT_FOUND),
    (("no command specified",), Reason.COMMAND_NOT_FOUND),
    (("cannot mkdir",), Reason.NOT_PERMITTED),
    (("not a directory",), Reason.NOT_PERMITTED),
    (("file name too long",), Reason.NOT_PERMITTED),
    (("no space left",), Reason.DISK_FULL),
)
_START_FAILURES = (
    (("no space left",), Reason.DISK_FULL),
    (("docker-init",), Reason.LAUNCH_ERROR),
    (("chdir to cwd",), Reason.NOT_PERMITTED),
    (("mkdir", "not a directory"), Reason.NOT_PERMITTED),
    (("file name too long",), Reason.NOT_PERMITTED),
    (("executable file not found",), Reason.COMMAND_NOT_FOUND),
    (("exec", "no such file or directory"), Reason.COMMAND_NOT_FOUND),
    (("exec format error",), Reason.NOT_EXECUTABLE),
    (("exec", "permission denied"), Reason.NOT_EXECUTABLE),
    (("exec", "is a directory"), Reason.NOT_EXECUTABLE),
)


@dataclass(frozen=True)
class _Engine:
    """What the engine says about itself."""

    info: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its id and its data directory: engines that share a key file share the id."""
        return f"{self.info['ID']}@{self.info['DockerRootDir']}"

    @property
    def limits(self) -> tuple[str, ...]:
        offered = {
            "cpu_limit": self.info.get("CpuCfsQuota"),
            "memory_limit_mb": self.info.get("MemoryLimit"),
            "pids_limit": self.info.get("PidsLimit"),
        }
        return tuple(limit for limit, is_offered in offered.items() if is_offered)

    @property
    def leaves_running(self) -> bool:
        """Live-restore: it ends no container when it ends itself."""
        return bool(self.info.get("LiveRestoreEnabled"))

    @property
    def cores(self) -> int:
        return int(self.info["NCPU"])

    @property
    def version(self) -> str:
        return f"Docker {self.info['ServerVersion']}"

    def runtime(self, wanted: str) -> str | None:
        """The runtime of that name, or of a variant: `kata-qemu`, `io.containerd.kata.v2`."""
        names = sorted(self.info.get("Runtimes") or {}, key=lambda name: (name != wanted, name))
        return next((name for name in names if wanted in re.split(r"[.-]", name)), None)


@dataclass(frozen=True)
class _Container:
    """A container as `inspect` shows it; `losses`: connections that had been lost by then."""

    facts: Mapping[str, Any]
    losses: int

    @property
    def id(self) -> str:
        return str(self.facts["Id"])

    @property
    def name(self) -> str:
        return str(self.facts["Name"]).removeprefix("/")

    @property
    def image_id(self) -> str:
        return str(self.facts["Image"])

    @cached_property
    def labels(self) -> Mapping[str, str]:
        return self.facts["Config"].get("Labels") or {}

    @property
    def state(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.facts["State"]
        return state

    @property
    def is_barred(self) -> bool:
        return LABEL_BARRED in self.labels

    @property
    def is_running(self) -> bool:
        return bool(self.state["Running"])

    @property
    def has_started(self) -> bool:
        return self.started_at is not None

    @property
    def started_at(self) -> datetime | None:
        return _time(self.state["StartedAt"])

    @property
    def ended_at(self) -> datetime | None:
        """Never before the start, whatever the engine's two readings of its clock say."""
        started, ended = self.started_at, _time(self.state["FinishedAt"])
        if self.is_running or started is None or ended is None:
            return None
        return max(started, ended)

    @property
    def exit_code(self) -> int:
        return int(self.state["ExitCode"])

    @property
    def signal(self) -> int | None:
        number = self.exit_code - 128
        return number if 0 < number < NSIG else None

    @property
    def was_ended(self) -> bool:
        """By a signal that an engine sends when it shuts down."""
        return self.signal in (SIGTERM, SIGKILL) and not self.was_out_of_memory

    @property
    def is_unknown_end(self) -> bool:
        """What an engine says of a container that nothing is left of, as after a crash."""
        return self.exit_code == _UNKNOWN

    @property
    def was_out_of_memory(self) -> bool:
        return bool(self.state["OOMKilled"])

    @property
    def memory_mb(self) -> int:
        return int(self.facts["HostConfig"]["Memory"]) // 1024**2

    @property
    def start_error(self) -> str:
        """Why it never started, when a start was tried."""
        return "" if self.has_started else str(self.state["Error"])

    @property
    def has_init(self) -> bool:
        return bool(self.facts["HostConfig"].get("Init"))

    @property
    def is_managed(self) -> bool:
        return LABEL_INSTANCE in self.labels

    def belongs_to(self, instance: str) -> bool:
        return self.labels.get(LABEL_INSTANCE) == instance

    def is_attempt(self, spec: JobSpec) -> bool:
        return all(self.labels.get(label) == value for label, value in spec.labels.items())


class DockerExecutor(Executor):
    """Runs each job in a container of its own.

    `base_url`: `unix:///path`, or `tcp://host:port` together with `tls_certificates`, a directory
    with ca.pem, cert.pem and key.pem; DOCKER_HOST and DOCKER_CERT_PATH where they are not given.
    `timeout`: seconds for one answer of the engine. `pool_size`: idle connections kept.
    `user`: whom jobs run as; root is refused unless `allow_root`. `allowed_networks`: the networks
    a job may name besides `none`. `runtimes`: isolation to runtime name, where they differ from
    runc, runsc and kata. The defaults hold for jobs that name no limit of their own.
    `tmp_mb`: size of the writable /tmp. `log_max_mb`: disk for one container's log at the engine;
    output beyond that can be followed and not resumed. `init`: an init as process 1, so that jobs
    react to SIGTERM and to signals of their own without handlers, and zombies are reaped.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        tls_certificates: str | None = None,
        timeout: float = 30.0,
        pool_size: int = 32,
        user: str = "65534:65534",
        allow_root: bool = False,
        allowed_networks: tuple[str, ...] = (),
        runtimes: Mapping[str, str] = RUNTIMES,
        default_cpus: float = 1.0,
        default_memory_mb: int = 512,
        default_pids: int = 256,
        open_files: int = 1024,
        tmp_mb: int = 64,
        log_max_mb: int = 64,
        init: bool = True,
    ) -> None:
        _refuse_root(user, allow_root)
        _refuse_networks(allowed_networks)
        certificates = tls_certificates or os.environ.get("DOCKER_CERT_PATH", "")
        address = Address.parse(base_url or address_from_environment(), certificates)
        self._is_local = bool(address.path)
        self._timeout = timeout
        self._http = EngineHttp(address, timeout=timeout, pool_size=pool_size)
        self._user = user
        self._allowed_networks = tuple(allowed_networks)
        self._runtimes = {Isolation(name): runtime for name, runtime in runtimes.items()}
        self._default_cpus = default_cpus
        self._default_memory_mb = default_memory_mb
        self._default_pids = default_pids
        self._open_files = open_files
        self._tmp_mb = tmp_mb
        self._log_max_mb = log_max_mb
        self._init = init
        self._silence = min(timeout, _SILENCE_SECONDS)
        self._known: tuple[int, _Engine] | None = None
        self._digests: dict[str, str] = {}
        self._live: dict[str, _Live] = {}
        self._alive_at: dict[str, int] = {}
        """By container: how many connections had been lost when it was last seen not to be over."""
        self._sought_at: dict[str, int] = {}
        """By name of those whose adopter got no answer yet: how many had been lost before."""
        self._start_locks = [threading.Lock() for _ in range(_START_LOCKS)]

    def close(self) -> None:
        """Closes the connections; what runs goes on, and the next call opens new ones."""
        for execution_id in list(self._live):
            self._let_go(execution_id)
        self._http.close()

    # who it is

    def engine_id(self) -> str:
        self._ping()
        return self._engine().id

    def capabilities(self) -> Capabilities:
        engine = self._engine()
        return Capabilities(
            isolations=tuple(self._offered(engine)), limits=engine.limits, engine=engine.version
        )

    def _engine(self) -> _Engine:
        """What the engine said about itself, asked again whenever a connection was lost."""
        known = self._known
        if known is None or known[0] != self._http.losses:
            info = self._ask("GET", "/info").json()
            known = self._known = self._http.losses, _Engine(info)
        return known[1]

    def _offered(self, engine: _Engine) -> dict[str, str]:
        """Isolation to runtime, strongest first."""
        found = {
            isolation.value: engine.runtime(self._runtimes[isolation])
            for isolation in _STRONGEST_FIRST
            if isolation in self._runtimes
        }
        return {isolation: runtime for isolation, runtime in found.items() if runtime}

    # created or adopted

    def create_or_adopt(
        self, spec: JobSpec, *, timeout: float, cancelled: threading.Event
    ) -> Execution:
        patience = _Patience(timeout, cancelled)
        body = self._container(spec)
        if spec.pull_policy == PullPolicy.ALWAYS:
            if (adopted := self._adopt(spec)) is not None:
                return adopted
            self._pull(spec.image, patience)
        return self._create_or_adopt(spec, body, patience)

    def _create_or_adopt(
        self, spec: JobSpec, body: Mapping[str, Any], patience: _Patience
    ) -> Execution:
        may_pull = spec.pull_policy == PullPolicy.MISSING
        while True:
            patience.check("Creating the container")
            reply = self._create(spec.name, body)
            if reply.ok:
                return self._created(reply.json()["Id"])
            if _is_missing_image(reply):
                if not may_pull:
                    raise _missing_image(spec)
                self._pull(spec.image, patience)
                may_pull = False
            elif reply.status != HTTPStatus.CONFLICT:
                raise _refusal(reply)
            elif (adopted := self._adopt(spec)) is not None:
                return adopted
            else:  # the name's owner is just being created or removed
                patience.rest()

    def _create(self, name: str, body: Mapping[str, Any]) -> Reply:
        return self._http.call("POST", "/containers/create", {"name": name}, body)

    def _created(self, container_id: str) -> Execution:
        container = self._inspect(container_id)
        if container is None:
            raise LaunchFailed(Reason.LAUNCH_ERROR, _REMOVED)
        return self._execution(container)

    def _adopt(self, spec: JobSpec) -> Execution | None:
        """The container that has the name, when it is this attempt's; None when there is none."""
        container = self._inspect(spec.name)
        if container is None:
            return None
        if not container.is_attempt(spec):
            message = f"The name {spec.name} is taken by a container that is not ours."
            raise LaunchFailed(Reason.NOT_PERMITTED, message)
        if container.is_barred:
            raise Barred(f"The name {spec.name} is barred: the attempt was declared absent.")
        return self._execution(container, adopted=True)

    def _container(self, spec: JobSpec) -> dict[str, Any]:
        return {
            "Image": spec.image,
            "Cmd": list(spec.command),
            "Env": [f"{name}={value}" for name, value in spec.environment.items()],
            "WorkingDir": spec.working_dir,
            "User": self._user,
            "Labels": spec.labels,
            "NetworkDisabled": spec.network == "none",
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": self._host_config(spec),
        }

    def _host_config(self, spec: JobSpec) -> dict[str, Any]:
        return {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={self._tmp_mb}m,mode=1777"},  # noqa: S108
            "IpcMode": "private",
            "Init": self._init,
            "LogConfig": {"Type": "local", "Config": self._log_options()},
            "NetworkMode": self._network(spec),
            "RestartPolicy": {"Name": "no"},
            "Runtime": self._runtime(spec),
            "Ulimits": [{"Name": "nofile", "Soft": self._open_files, "Hard": self._open_files}],
            **self._limits(spec),
        }

    def _limits(self, spec: JobSpec) -> dict[str, Any]:
        engine = self._engine()
        memory = (spec.memory_limit_mb or self._default_memory_mb) * 1024 * 1024
        cpus = spec.cpu_limit or min(self._default_cpus, engine.cores)
        limits: dict[str, dict[str, Any]] = {
            "memory_limit_mb": {"Memory": memory, "MemorySwap": memory, "OomKillDisable": False},
            "cpu_limit": {"NanoCpus": round(cpus * 10**9)},
            "pids_limit": {"PidsLimit": spec.pids_limit or self._default_pids},
        }
        enforced: dict[str, Any] = {}
        for limit, options in limits.items():
            if limit in engine.limits or getattr(spec, limit) is not None:
                enforced |= options
        return enforced

    def _log_options(self) -> dict[str, str]:
        """Two files, so that the older half is lost at once and never all."""
        return {"max-size": f"{self._log_max_mb * 512}k", "max-file": "2", "compress": "false"}

    def _network(self, spec: JobSpec) -> str:
        if spec.network == "none" or spec.network in self._allowed_networks:
            return spec.network
        raise LaunchFailed(Reason.NOT_PERMITTED, f"The network {spec.network!r} is not allowed.")

    def _runtime(self, spec: JobSpec) -> str:
        offered = self._offered(self._engine())
        if spec.isolation == Isolation.AUTO and offered:
            return next(iter(offered.values()))
        if spec.isolation not in offered:
            message = f"This engine does not offer the isolation {spec.isolation!r}."
            raise LaunchFailed(Reason.NOT_PERMITTED, message)
        return offered[spec.isolation]

    # the image

    def _pull(self, image: str, patience: _Patience) -> None:
        repository, tag = _split_reference(image)
        query = {"fromImage": repository, "tag": tag}
        stream = self._http.stream("POST", "/images/create", query, _registry_auth(image))
        try:
            error = _pull_error(stream, patience)
        finally:
            stream.close()
        if error:
            raise _pull_failure(image, error)

    def _digest(self, image_id: str) -> str:
        """The repository digest of an image, or its id when it came from no registry."""
        if image_id not in self._digests:
            reply = self._http.call("GET", _path("images", image_id, "json"))
            known = reply.json().get("RepoDigests") if reply.ok else None
            short = known and len(known[0]) <= _LONGEST_DIGEST
            self._digests[image_id] = known[0] if known and short else image_id
        return self._digests[image_id]

    # started

    def start(self, execution: Execution) -> Execution:
        # The engine starts an ended container anew: between our look and our start nobody else's.
        with self._start_lock(execution):
            return self._start_once(execution)

    def _start_once(self, execution: Execution) -> Execution:
        container = self._ours(execution)
        if container is not None and container.has_started:
            return self._execution(container, adopted=execution.adopted)
        if container is not None and container.start_error:
            raise _start_failure(container.start_error)
        if self._alive_at.get(execution.execution_id) == _UNHEARD:
            return self._unheard(execution)
        if container is None:
            raise LaunchFailed(Reason.LAUNCH_ERROR, _REMOVED)
        live = self._open_live(container.id)
        try:
            reply = self._ask_to_start(container.id)
            if not reply.ok:
                raise self._explain_failed_start(container.id, reply)
        except BaseException:
            live.close()
            raise
        self._live[container.id] = live
        self._alive_at[container.id] = live.losses
        return self._started(container.id, execution)

    def _ask_to_start(self, container_id: str) -> Reply:
        try:
            return self._http.call("POST", _path("containers", container_id, "start"))
        except EngineUnavailable:
            self._alive_at[container_id] = _UNHEARD
            raise

    def _unheard(self, execution: Execution) -> Execution:
        """One that was asked to start, did not say so, and does not look as if it had.

        It is not asked twice: the first request may still be on its way, and an engine that went
        away meanwhile may have forgotten that it ran (seen with Docker 20.10).
        """
        if self._remove_unstarted(execution):
            raise LaunchFailed(Reason.EXECUTOR_UNAVAILABLE, _LOST)
        container = self._ours(execution)
        if container is None or not container.has_started:
            raise EngineUnavailable("The container is just being started, or removed.")
        return self._execution(container, adopted=execution.adopted)

    def _end_unseen(self, container_id: str) -> None:
        """Kill what an engine of this machine runs in a container without knowing of it.

        Needs to see the machine's processes, and the right to signal them.
        """
        deadline = monotonic() + self._timeout
        while self._is_local and (pids := _inside(container_id)):
            if monotonic() > deadline:
                raise EngineUnavailable(f"What runs in {container_id} cannot be ended.")
            try:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, SIGKILL)
            except PermissionError:
                return  # the engine's user may; a worker that is none must leave it
            sleep(_POLL_SECONDS)

    def _explain_failed_start(self, container_id: str, reply: Reply) -> Exception:
        """A failed start is the job's only when the engine wrote it down."""
        container = self._inspect(container_id)
        if container is not None and container.start_error:
            return _start_failure(container.start_error)
        if reply.status >= 500:
            return EngineRefused(f"The engine failed to start it: {reply.message}")
        return _start_failure(reply.message)

    def _started(self, container_id: str, execution: Execution) -> Execution:
        container = self._inspect(container_id)
        if container is None:
            raise LaunchFailed(Reason.LAUNCH_ERROR, _REMOVED)
        return self._execution(container, adopted=execution.adopted, elapsed=0.0)

    def _open_live(self, container_id: str) -> _Live:
        """An attach stream; the engine keeps its bytes for us from before the answer's head on."""
        losses = self._http.losses
        query = {"stream": "1", "stdout": "1", "stderr": "1"}
        stream = self._open("POST", _path("containers", container_id, "attach"), query)
        if stream is None:
            raise LaunchFailed(Reason.LAUNCH_ERROR, _REMOVED)
        return _Live(stream, losses)

    # found again

    def find(self, name: str, instance: str) -> Execution | None:
        sought_at = self._sought_at.setdefault(name, self._http.losses)
        container = self._inspect(name)
        self._sought_at.pop(name, None)
        if container is None or container.is_barred or not container.belongs_to(instance):
            return None
        if container.is_running:
            self._alive_at[container.id] = container.losses
        elif container.losses != sought_at:
            self._alive_at.setdefault(container.id, sought_at)
        return self._execution(container, adopted=True)

    def list_names(self, instance: str) -> list[str]:
        filters = json.dumps({"label": [f"{LABEL_INSTANCE}={instance}"]})
        listed = self._ask("GET", "/containers/json", {"all": "1", "filters": filters}).json()
        return [entry["Names"][0].removeprefix("/") for entry in listed if entry["Names"]]

    def _execution(
        self, container: _Container, *, adopted: bool = False, elapsed: float | None = None
    ) -> Execution:
        return Execution(
            name=container.name,
            execution_id=container.id,
            running=container.is_running,
            started=container.has_started,
            adopted=adopted,
            started_at=container.started_at,
            elapsed_seconds=self._elapsed(container) if elapsed is None else elapsed,
            image_digest=self._digest(container.image_id),
        )

    def _elapsed(self, container: _Container) -> float:
        if container.started_at is None:
            return 0.0
        if container.ended_at is not None:
            return max(0.0, (container.ended_at - container.started_at).total_seconds())
        now = _time(self._ask("GET", "/info").json()["SystemTime"])
        return max(0.0, (now - container.started_at).total_seconds()) if now else 0.0

    # watched

    def attach(self, execution: Execution, offsets: Mapping[str, int]) -> Iterator[Chunk]:
        progress = Progress(offsets)
        live = self._live.pop(execution.execution_id, None)
        if live is not None:
            yield from self._follow_live(execution, live.stream, progress)
            self._ended(execution)
            if live.stream.has_ended and self._http.losses == live.losses:
                return  # the same engine ran all the time, so the stream's end was the output's
        yield from self._follow_log(execution, progress)

    def _follow_live(
        self, execution: Execution, stream: EngineStream, progress: Progress
    ) -> Iterator[Chunk]:
        frames = Frames()
        try:
            for data in self._read_while_running(execution, stream):
                yield from progress.chunks(frames.feed(data))
        finally:
            stream.close()

    def _follow_log(self, execution: Execution, progress: Progress) -> Iterator[Chunk]:
        """Follows the log, and reads it once more when nothing can be added to it."""
        losses = self._http.losses
        if not self._has_ended(execution):
            yield from self._read_log(execution, progress, Log(), follow="1")
            self._ended(execution)
        log = Log()
        yield from self._read_log(execution, progress, log, follow="0")
        self._ping()
        if self._http.losses != losses:
            raise EngineUnavailable("The connection to the engine was lost while it told the log.")
        yield from progress.chunks(log.end())

    def _read_log(
        self, execution: Execution, progress: Progress, log: Log, *, follow: str
    ) -> Iterator[Chunk]:
        progress.rewind()
        stream = self._open_log(execution, follow=follow, timestamps="1")
        if stream is None:
            return
        try:
            for data in self._read_while_running(execution, stream):
                yield from progress.chunks(log.feed(data))
            if follow == "0" and not stream.has_ended:
                raise EngineUnavailable("The engine fell silent while it told the log.")
        finally:
            stream.close()

    def _open_log(self, execution: Execution, **options: str) -> EngineStream | None:
        """None when the container is gone."""
        query = {"stdout": "1", "stderr": "1", **options}
        path = _path("containers", _reference(execution), "logs")
        return self._open("GET", path, query)

    def _read_while_running(self, execution: Execution, stream: EngineStream) -> Iterator[bytes]:
        """A silent job may be silent for hours; a stream that outlives its container may not."""
        looked_at = monotonic()
        while (data := stream.read(self._silence)) != b"":
            if data is None and self._has_ended(execution):
                return
            if data is not None:
                yield data
                if monotonic() - looked_at < self._silence:
                    continue
                with suppress(EngineUnavailable):  # of a job that prints it is good to know only
                    self._ours(execution)
            looked_at = monotonic()

    # ended

    def collect(self, execution: Execution) -> Outcome:
        self._let_go(execution.execution_id)
        container = self._ended(execution)
        if container is None:
            return Outcome(None, reason=Reason.WORKER_LOST, error=_REMOVED)
        if not container.has_started:
            return _never_started(container)
        if container.was_ended:
            self._http.knock()  # its engine may be about to go away, and have taken it along
        return (
            self._init_failure(execution, container)
            or self._unseen_end(container)
            or _outcome(container)
        )

    def _unseen_end(self, container: _Container) -> Outcome | None:
        """The end of one that its engine or its machine took along, or that nobody followed."""
        if self._ended_with_its_machine(container):
            return _taken_along(container)
        if self._alive_at.get(container.id, container.losses) == container.losses:
            return None
        if container.is_unknown_end or (container.was_ended and not self._engine().leaves_running):
            return _taken_along(container)
        return _outcome(container, more=_UNFOLLOWED)

    def _ended_with_its_machine(self, container: _Container) -> bool:
        """Stopped before the machine came up, or not known to the engine that came up with it."""
        booted = _booted_at() if self._is_local else None
        started, ended = container.started_at, container.ended_at
        if booted is None or started is None or ended is None or started >= booted:
            return False
        return container.was_ended if ended < booted else container.is_unknown_end

    def _let_go(self, execution_id: str) -> None:
        """An output that nobody reads must not hold the job up."""
        if (live := self._live.pop(execution_id, None)) is not None:
            live.close()

    def _ended(self, execution: Execution) -> _Container | None:
        """The container once it has ended; None when it is gone."""
        while (container := self._ours(execution)) is not None and container.is_running:
            self._wait(execution, self._silence)
        return container

    def _ended_within(self, execution: Execution, seconds: float) -> bool:
        deadline = monotonic() + seconds
        while not self._has_ended(execution):
            if (left := deadline - monotonic()) <= 0:
                return False
            self._wait(execution, min(left, self._silence))
        return True

    def _has_ended(self, execution: Execution) -> bool:
        container = self._ours(execution)
        return container is None or not container.is_running

    def _wait(self, execution: Execution, seconds: float) -> None:
        """Returns when it ended, or after so many seconds."""
        path = _path("containers", _reference(execution), "wait")
        stream = self._http.stream("POST", path)
        try:
            if stream.read(seconds) == b"":
                raise EngineUnavailable("The engine stopped waiting for the container.")
        finally:
            stream.close()

    def _init_failure(self, execution: Execution, container: _Container) -> Outcome | None:
        """With an init the engine starts the init, which then may find nothing to execute."""
        if not container.has_init or container.exit_code not in _INIT_CODES:
            return None
        said = _INIT_FAILED.fullmatch(self._only_output(execution))
        if said is None:
            return None
        command, error = (part.decode(errors="replace") for part in said.groups())
        missing = error == "No such file or directory"
        reason = Reason.COMMAND_NOT_FOUND if missing else Reason.NOT_EXECUTABLE
        return _outcome(container, reason, f"{command}: {error}.")

    def _only_output(self, execution: Execution) -> bytes:
        """All it ever said when that was one line, else nothing of use."""
        stream = self._open_log(execution, tail="2")
        if stream is None:
            return b""
        try:
            output = b""
            while data := stream.read(self._timeout):
                output += data
            return b"".join(text for _, text in Frames().feed(output))
        finally:
            stream.close()

    # stopped

    def stop(self, execution: Execution, *, grace: float) -> bool:
        if not self._may_run(execution):
            return False
        if grace <= 0:
            return self._kill(execution)
        if not self._signal(execution, "SIGTERM"):
            return False
        if not self._ended_within(execution, grace):
            self._kill(execution)
        return True

    def _may_run(self, execution: Execution) -> bool:
        """False when it is gone, or never ran and now never will."""
        with self._start_lock(execution):
            container = self._ours(execution)
            if container is None or container.start_error:
                return False
            return container.has_started or not self._remove_unstarted(execution)

    def _remove_unstarted(self, execution: Execution) -> bool:
        """Without force the engine refuses when somebody started it meanwhile."""
        if self._delete(execution, v="1").status == HTTPStatus.CONFLICT:
            return False
        self._end_unseen(execution.execution_id)
        return True

    def _kill(self, execution: Execution) -> bool:
        """True when it died of it: the engine takes a signal also for one that is just ending."""
        if not self._signal(execution, "SIGKILL"):
            return False
        if not self._ended_within(execution, self._timeout):
            raise EngineUnavailable("The engine could not kill the container.")
        container = self._ours(execution)
        return container is None or container.exit_code == _SIGKILLED

    def _signal(self, execution: Execution, signal: str) -> bool:
        """True when the engine delivered it."""
        path = _path("containers", _reference(execution), "kill")
        reply = self._http.call("POST", path, {"signal": signal})
        if reply.ok:
            return True
        if reply.status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            return False
        raise EngineUnavailable(f"The engine could not send {signal}: {reply.message}")

    # removed and barred

    def remove(self, execution: Execution) -> None:
        self._let_go(execution.execution_id)
        if self._ours(execution) is not None:
            self._delete(execution, v="1", force="1")
        self._alive_at.pop(execution.execution_id, None)

    def _delete(self, execution: Execution, **query: str) -> Reply:
        """Absent, or being removed already, is fine; one that cannot be removed is all there is."""
        path = _path("containers", _reference(execution))
        reply = self._http.call("DELETE", path, query)
        if reply.ok or reply.status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            return reply
        raise EngineRefused(f"The engine refused DELETE {path}: {reply.message}")

    def discard(self, execution: Execution) -> bool:
        with self._start_lock(execution):
            container = self._ours(execution)
            if container is not None and container.start_error:
                raise _start_failure(container.start_error)
            if container is not None and container.has_started:
                return False
            return self._remove_unstarted(execution)

    def applied_limits(self, spec: JobSpec) -> dict[str, float]:
        defaults: dict[str, float] = {
            "cpu_limit": self._default_cpus,
            "memory_limit_mb": self._default_memory_mb,
            "pids_limit": self._default_pids,
        }
        return {**defaults, **super().applied_limits(spec)}

    def bar(self, spec: JobSpec) -> bool:
        deadline = monotonic() + self._timeout
        while monotonic() < deadline:
            reply = self._create(spec.name, _barrier(spec))
            if reply.ok:
                return True
            if _is_missing_image(reply):
                self._import_barred_image()
            elif reply.status != HTTPStatus.CONFLICT:
                raise EngineUnavailable(f"The engine could not bar the name: {reply.message}")
            elif (owner := self._inspect(spec.name)) is not None:
                return owner.is_barred or not owner.is_attempt(spec)
            else:  # the name's owner is just being created or removed
                sleep(_POLL_SECONDS)
        raise EngineUnavailable(f"The name {spec.name} is taken by nobody that can be seen.")

    def _import_barred_image(self) -> None:
        """An image without a single file; a container needs one, also one that never starts."""
        repository, tag = BARRED_IMAGE.split(":")
        query = {"fromSrc": "-", "repo": repository, "tag": tag}
        self._ask("POST", "/images/create", query, _EMPTY_TAR)

    # the engine

    def _ours(self, execution: Execution) -> _Container | None:
        """The container of this handle, unless it is gone or a stranger has its name."""
        container = self._inspect(_reference(execution))
        if container is None or container.name != execution.name:
            return None
        if container.is_running and container.is_managed:
            self._alive_at[container.id] = container.losses
        return container if container.is_managed else None

    def _inspect(self, reference: str) -> _Container | None:
        path = _path("containers", reference, "json")
        reply = self._ask("GET", path, fine=(HTTPStatus.NOT_FOUND,))
        return _Container(reply.json(), reply.losses) if reply.ok else None

    def _ping(self) -> None:
        """Notices when the engine behind the socket went away, or stands still."""
        self._ask("GET", "/_ping", timeout=min(self._timeout, _PING_SECONDS))

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        fine: tuple[int, ...] = (),
        timeout: float | None = None,
    ) -> Reply:
        """A call whose refusal says nothing about the job."""
        reply = self._http.call(method, path, query, body, timeout=timeout)
        if reply.ok or reply.status in fine:
            return reply
        raise EngineUnavailable(f"The engine refused {method} {path}: {reply.message}")

    def _open(self, method: str, path: str, query: Mapping[str, str]) -> EngineStream | None:
        """A stream whose answer has begun; None when there is nothing of that name."""
        stream = self._http.stream(method, path, query)
        try:
            status = stream.wait_for_head(self._timeout)
            if status < HTTPStatus.BAD_REQUEST:
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()
        if status == HTTPStatus.NOT_FOUND:
            return None
        raise EngineUnavailable(f"The engine refused {method} {path}: HTTP status {status}")

    def _start_lock(self, execution: Execution) -> threading.Lock:
        return self._start_locks[hash(execution.execution_id) % _START_LOCKS]


@dataclass(frozen=True)
class _Live:
    """An open attach stream, and how many connections had been lost when it was opened."""

    stream: EngineStream
    losses: int

    def close(self) -> None:
        self.stream.close()


class _Patience:
    """How long, and whether at all, the caller still waits."""

    def __init__(self, seconds: float, cancelled: threading.Event) -> None:
        self._seconds = seconds
        self._deadline = monotonic() + seconds
        self._cancelled = cancelled

    def check(self, what: str) -> None:
        if self._cancelled.is_set():
            raise StartCancelled(f"{what} was given up.")
        if monotonic() >= self._deadline:
            message = f"{what} took longer than {self._seconds:g} seconds."
            raise LaunchFailed(Reason.START_TIMEOUT, message)

    def rest(self) -> None:
        self._cancelled.wait(_POLL_SECONDS)


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _reference(execution: Execution) -> str:
    return execution.execution_id or execution.name


def _time(text: str) -> datetime | None:
    """The engine's time; it writes the year 1 for never."""
    time = datetime.fromisoformat(text).astimezone(UTC)
    return time if time.year > 1 else None


def _meaning(
    message: str, table: tuple[tuple[tuple[str, ...], Reason], ...], otherwise: Reason
) -> Reason:
    said = message.lower()
    return next((reason for words, reason in table if all(w in said for w in words)), otherwise)


def _is_missing_image(reply: Reply) -> bool:
    return reply.status == HTTPStatus.NOT_FOUND and "no such image" in reply.message.lower()


def _missing_image(spec: JobSpec) -> LaunchFailed:
    if spec.pull_policy == PullPolicy.NEVER:
        message = f"The engine does not have the image {spec.image}, and it may not be pulled."
        return LaunchFailed(Reason.IMAGE_NOT_FOUND, message)
    return LaunchFailed(Reason.LAUNCH_ERROR, f"The image {spec.image} was pulled and is not there.")


def _refusal(reply: Reply) -> Exception:
    """What a refused create means: a 4xx is about the job, a 5xx only with words that we know."""
    refused = reply.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN)
    unknown = Reason.NOT_PERMITTED if refused else Reason.EXECUTOR_UNAVAILABLE
    reason = _meaning(reply.message, _CREATE_FAILURES, unknown)
    if reason == Reason.EXECUTOR_UNAVAILABLE:
        return EngineRefused(f"The engine could not create the container: {reply.message}")
    return LaunchFailed(reason, f"The engine refused to create the container: {reply.message}")


def _start_failure(message: str) -> LaunchFailed:
    reason = _meaning(message, _START_FAILURES, Reason.LAUNCH_ERROR)
    return LaunchFailed(reason, f"The container could not be started: {message}")


def _pull_failure(image: str, error: str) -> LaunchFailed:
    reason = _meaning(error, _PULL_FAILURES, Reason.LAUNCH_ERROR)
    if reason == Reason.IMAGE_NOT_FOUND and _is_about_credentials(error):
        message = f"The registry refuses {image} without the right credentials: {error}"
    else:
        message = f"The image {image} could not be pulled: {error}"
    return LaunchFailed(reason, message)


def _is_about_credentials(error: str) -> bool:
    return any(words in error.lower() for words in _CREDENTIALS)


def _pull_error(stream: EngineStream, patience: _Patience) -> str:
    """Reads the engine's progress to its end; what went wrong, if anything did."""
    error, pending = "", b""
    while (data := stream.read(_POLL_SECONDS)) != b"":
        patience.check("Pulling the image")
        reached("R2")
        *lines, pending = (pending + (data or b"")).split(b"\n")
        error = next(filter(None, map(_error_of, lines)), error)
    return _error_of(pending) or error


def _error_of(line: bytes) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return ""
    return str(said.get("error") or said.get("message") or "")


def _split_reference(image: str) -> tuple[str, str]:
    """Repository and tag or digest; without a tag the engine would pull all of them."""
    name, _, digest = image.partition("@")
    if digest:
        return name, digest
    repository, colon, tag = image.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (image, "latest")


def _registry_auth(image: str) -> dict[str, str]:
    """The credentials that `docker login` left for the image's registry."""
    try:
        from docker import auth, errors
    except ImportError:
        return {}
    try:
        registry, _ = auth.resolve_repository_name(image)
        credentials = auth.load_config().resolve_authconfig(registry)
    except errors.DockerException as error:
        message = f"No credentials for {image} can be read: {error}"
        raise LaunchFailed(Reason.IMAGE_NOT_FOUND, message) from error
    return {"X-Registry-Auth": auth.encode_header(credentials).decode()} if credentials else {}


def _barrier(spec: JobSpec) -> dict[str, Any]:
    return {
        "Image": BARRED_IMAGE,
        "Cmd": ["barred"],
        "Labels": {**spec.labels, LABEL_BARRED: "1"},
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none", "ReadonlyRootfs": True, "CapDrop": ["ALL"]},
    }


def _never_started(container: _Container) -> Outcome:
    if not container.start_error:
        return Outcome(None, reason=Reason.LAUNCH_ERROR, error="The container never started.")
    failure = _start_failure(container.start_error)
    return Outcome(container.exit_code, reason=failure.reason, error=str(failure))


def _taken_along(container: _Container) -> Outcome:
    """The exit code stands only where it is one."""
    known = not container.is_unknown_end
    ended = f"It was ended by signal {container.signal} when its engine went away."
    return Outcome(
        exit_code=container.exit_code if known else None,
        signal=container.signal if known else None,
        reason=Reason.EXECUTOR_UNAVAILABLE,
        error=ended if known else _LOST,
        started_at=container.started_at,
        ended_at=container.ended_at,
    )


def _inside(container_id: str) -> list[int]:
    """The living processes of this machine that are in a container, by their control groups."""
    if not (_CONTAINER_ID.fullmatch(container_id) and Path("/proc/self/cgroup").exists()):
        return []
    return [
        process.pid
        for process in processes()
        if not process.is_zombie and container_id in _control_groups(process.pid)
    ]


def _control_groups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _booted_at() -> datetime | None:
    """When this machine came up; None where that cannot be read."""
    try:
        found = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    except OSError:
        return None
    return datetime.fromtimestamp(int(found[1]), UTC) if found else None


def _outcome(
    container: _Container, reason: Reason | None = None, error: str = "", more: str = ""
) -> Outcome:
    reason = reason or _reason(container)
    return Outcome(
        exit_code=container.exit_code,
        signal=container.signal,
        oom_killed=container.was_out_of_memory,
        reason=reason,
        error=" ".join(filter(None, (error or _sentence(container, reason), more))),
        started_at=container.started_at,
        ended_at=container.ended_at,
    )


def _reason(container: _Container) -> Reason | None:
    if container.exit_code == 0:
        return None
    if container.was_out_of_memory:
        return Reason.OOM
    return Reason.EXIT_CODE if container.signal is None else Reason.SIGNAL


def _sentence(container: _Container, reason: Reason | None) -> str:
    if reason == Reason.OOM:
        return f"It needed more memory than its limit of {container.memory_mb} MB."
    if reason == Reason.SIGNAL:
        return f"It was ended by signal {container.signal}."
    return f"It ended with exit code {container.exit_code}." if reason else ""


def _refuse_root(user: str, allow_root: bool) -> None:
    if not re.fullmatch(r"\d+:\d+", user):
        raise ValueError(f"The user {user!r} must be given in numbers: uid:gid.")
    if not allow_root and 0 in map(int, user.split(":")):
        raise ValueError("Jobs do not run as root unless allow_root says so.")


def _refuse_networks(networks: tuple[str, ...]) -> None:
    for network in networks:
        if network.startswith(_NEVER_ALLOWED):
            raise ValueError(f"The network {network!r} would take a job out of its own.")
