"""The application of procrastinate that both of its verbs use; lives in its environment."""

from __future__ import annotations

import procrastinate


def app_for(dsn: str, connections: int = 4) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1, max_size=connections)
    return procrastinate.App(connector=connector)


def with_task(app: procrastinate.App) -> procrastinate.tasks.Task:
    @app.task(name="nothing")
    async def nothing(number: int) -> None:
        """Succeeds at once."""

    return nothing
