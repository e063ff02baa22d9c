"""Runs in procrastinate's own environment: fills its queue, or works it off.

procrastinate_worker.py fill DSN JOBS
procrastinate_worker.py work DSN CONCURRENCY
"""

from __future__ import annotations

import asyncio
import sys

import psycopg
from procrastinate_app import app_for, with_task

BATCH = 1_000


async def fill(dsn: str, jobs: int) -> None:
    app = app_for(dsn)
    nothing = with_task(app)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, jobs, BATCH):
            numbers = range(start, min(start + BATCH, jobs))
            await nothing.batch_defer_async(*({"number": number} for number in numbers))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


async def work(dsn: str, concurrency: int) -> None:
    app = app_for(dsn, connections=min(concurrency + 2, 20))
    with_task(app)
    async with app.open_async():
        await app.run_worker_async(concurrency=concurrency, wait=False)


if __name__ == "__main__":
    verb, dsn, number = sys.argv[1:]
    asyncio.run({"fill": fill, "work": work}[verb](dsn, int(number)))
