"""The generated part of docs/monitoring.md."""

from __future__ import annotations

from container_manager.reports.metrics import METRICS


def metrics() -> str:
    rows = [
        f"| `{metric.name}` | {metric.kind} | {_words(metric.labels)} | {metric.help} |"
        for metric in METRICS.values()
    ]
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows])


def _words(labels: tuple[str, ...]) -> str:
    return " ".join(f"`{label}`" for label in labels)


def names() -> str:
    """Every name that a query may ask for."""
    found = []
    for metric in METRICS.values():
        of_histogram = [f"{metric.name}{end}" for end in ("_bucket", "_count", "_sum")]
        found += of_histogram if metric.kind == "histogram" else [metric.name]
    return "\n".join(found)
