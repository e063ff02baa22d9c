"""What Prometheus is told: the names, what they mean, and how they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from container_manager.models.move_counts import UP_TO_MS, Durations

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

PREFIX = "container_manager_"


@dataclass(frozen=True)
class Metric:
    """One name that is told."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {}
"""Each metric by its name without PREFIX, in the order in which it is told."""


def _metric(kind: str, name: str, help: str, *labels: str) -> str:
    METRICS[name] = Metric(PREFIX + name, kind, help, labels)
    return name


def _gauge(name: str, help: str, *labels: str) -> str:
    return _metric("gauge", name, help, *labels)


BUILD = _gauge(
    "build_info", "Always 1; the version that answers, and its database.", "version", "database"
)
JOBS = _gauge("jobs", "Jobs by the state in which they stand and their queue.", "state", "queue")
OLDEST = _gauge(
    "oldest_queued_seconds", "For how long the oldest queued job of a queue has waited.", "queue"
)
PAUSED = _gauge("queue_paused", "1 while a queue is paused.", "queue")
LIMIT = _gauge(
    "queue_max_running", "Jobs of a queue that may run at once, where it is limited.", "queue"
)
WORKERS = _gauge(
    "workers", "Workers by their last sign of life; draining ones take nothing new.", "state"
)
SLOTS = _gauge("worker_slots", "Jobs that all living workers can run at once.")
USED = _gauge("worker_slots_used", "Jobs that living workers hold.")
ATTEMPTS = _gauge("attempts_running", "Attempts that are under way, by executor.", "executor")
UNREACHABLE = _gauge(
    "attempts_unreachable", "Attempts under way whose engine answers nobody.", "executor"
)
UP = _gauge("executor_up", "1 while the executor answers a living worker.", "executor")
REACHED_BY = _gauge("executor_workers", "Living workers on which the executor answers.", "executor")
MOVES = _metric(
    "counter",
    "transitions_total",
    "Moves since they are counted; `from` is empty where something began.",
    "entity",
    "from",
    "to",
)
WAITED = _metric(
    "histogram",
    "job_wait_seconds",
    "How long jobs waited in the queue, since they were due, until they were started.",
)
RAN = _metric(
    "histogram",
    "job_run_seconds",
    "How long attempts ran, by the state to which their job went.",
    "state",
)
RUNS = _gauge("dag_runs", "Runs of DAGs that are not over.", "state")
OVERDUE = _gauge(
    "dag_slots_overdue", "DAGs, not paused, of which a slot came over a minute ago and has no run."
)
OVERDUE_FOR = _gauge("dag_slot_overdue_seconds", "How long ago the oldest such slot came.")
SCHEDULERS = _gauge("schedulers", "Schedulers by their last sign of life.", "state")
RELAYS = _gauge("relays", "Relays by their last sign of life.", "state")
EVENTS = _metric("counter", "events_total", "Events that got their place in the sequence.")
LAG = _gauge("publisher_lag_events", "Moves that a publisher was not told of yet.", "publisher")
LAG_FOR = _gauge(
    "publisher_lag_seconds",
    "How long ago the first move happened that it was not told of.",
    "publisher",
)
FAILURES = _gauge(
    "publisher_failures", "Deliveries of a publisher that failed in a row.", "publisher"
)
FAILING_FOR = _gauge(
    "publisher_failing_seconds", "For how long it has failed; 0 while it does not.", "publisher"
)
LETTERS = _gauge(
    "dead_letters", "Events that the receiver of a publisher refused for good.", "publisher"
)


class Told:
    """The samples of all metrics, of each the labels only once."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
        self._durations: dict[str, dict[tuple[str, ...], Durations]] = defaultdict(dict)

    def set(self, name: str, value: float, *labels: str) -> None:
        self._samples[name][labels] = value

    def add(self, name: str, value: float, *labels: str) -> None:
        self._samples[name][labels] = self._samples[name].get(labels, 0) + value

    def raise_to(self, name: str, value: float, *labels: str) -> None:
        self._samples[name][labels] = max(self._samples[name].get(labels, 0), value)

    def durations(self, name: str, value: Durations, *labels: str) -> None:
        self._durations[name][labels] = value

    def families(self) -> Iterator[Family]:
        for name, metric in METRICS.items():
            family = Family(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for labels, value in sorted(self._samples[name].items()):
                family.add_sample(metric.name, dict(zip(metric.labels, labels, strict=True)), value)
            for labels in sorted(self._durations[name]):
                durations = self._durations[name][labels]
                _add_histogram(family, dict(zip(metric.labels, labels, strict=True)), durations)
            yield family


def _add_histogram(family: Family, labels: dict[str, str], durations: Durations) -> None:
    upto = 0
    ends = [*(f"{end / 1000:g}" for end in UP_TO_MS), "+Inf"]
    for end, count in zip(ends, durations.counts, strict=True):
        upto += count
        family.add_sample(f"{family.name}_bucket", {**labels, "le": end}, upto)
    family.add_sample(f"{family.name}_count", labels, upto)
    family.add_sample(f"{family.name}_sum", labels, durations.total_ms / 1000)


class _Collected(Collector):
    """What was read already, as prometheus-client takes it."""

    def __init__(self, told: Told) -> None:
        self._told = told

    def collect(self) -> Iterator[Family]:
        return self._told.families()


def as_text(told: Told) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(told))
    return generate_latest(registry)
