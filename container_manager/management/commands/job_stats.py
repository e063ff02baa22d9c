"""Show how many jobs stand where, and how long they take."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from rich.text import Text

from container_manager.management import tables
from container_manager.management.base import JobCommand
from container_manager.models.job_counts import job_stats


class Command(JobCommand):
    help = "Show how many jobs stand where, and how long completed ones took."
    only_reads = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="one JSON object, as the API has it"
        )

    def handle(self, **options: Any) -> None:
        stats = job_stats()
        if options["json"]:
            self.say(tables.dumps(stats))
        elif self.out.isatty():
            self._show_table(stats, options["no_color"])
        else:
            for name, value in _flat(stats):
                self.say(f"{name}\t{tables.visible(value)}")

    def _show_table(self, stats: dict[str, Any], no_color: bool) -> None:
        rows = tables.table("", "JOBS")
        rows.columns[1].justify = "right"
        for status, count in stats["by_status"].items():
            rows.add_row(tables.status_text(status), str(count))
        rows.add_row("total", str(stats["total"]), style="bold")
        for group in ("queue", "executor", "isolation"):
            for word, count in stats[f"by_{group}"].items():
                if count:
                    label = f"{group} {tables.visible(word) or '(any)'}"
                    rows.add_row(Text(label, style="dim"), str(count))
        tables.console(self.out, no_color=no_color).print(rows)
        self.say(_sentence(stats))


def _sentence(stats: dict[str, Any]) -> str:
    average, half, most = (
        tables.span(timedelta(milliseconds=stats[f"{name}_duration_ms"]))
        for name in ("avg", "p50", "p95")
    )
    waited = tables.span(timedelta(seconds=stats["oldest_queued_seconds"]))
    queue = f"; the oldest in the queue waits for {waited}" if stats["queue_depth"] else ""
    return f"Completed jobs took {average} on average, p50 {half}, p95 {most}{queue}."


def _flat(stats: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in stats.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        flat += [(f"{name}.{word}" if word else name, found) for word, found in inner]
    return flat
