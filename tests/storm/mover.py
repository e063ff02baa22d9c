"""One process that moves jobs: python -m tests.storm.mover MOVES SEED"""

from __future__ import annotations

import random
import sys
import time

import django

LATE = 0.05
"""So many of the transactions end long after their first move."""

ALIVE = 40
"""Jobs that are moved in turns."""


def main(moves: int, seed: int) -> None:
    django.setup()
    from django.db import connection, transaction

    from container_manager.models import ContainerJob, acting_as
    from container_manager.states import JOB, JobStatus

    chance = random.Random(seed)
    longest = 1.0 if connection.vendor == "postgresql" else 0.02  # there others wait for it
    alive: list[ContainerJob] = []
    made = 0

    def another() -> None:
        alive.append(ContainerJob.objects.create(image="busybox", command=["true"]))

    def move(job: ContainerJob) -> None:
        nexts = [state for state in JOB.get_next_states(job.status) if state != JobStatus.CANCELLED]
        job.transition_to(chance.choice(nexts))
        if job.is_terminal:
            alive.remove(job)

    with acting_as(f"mover:{seed}"):
        while made < moves:
            with transaction.atomic():
                for _ in range(chance.choice((1, 1, 1, 2, 5))):
                    if (len(alive) < ALIVE and chance.random() < 0.3) or not alive:
                        another()
                    else:
                        move(chance.choice(alive))
                    made += 1
                if chance.random() < LATE:
                    time.sleep(chance.uniform(0, longest))
    print(f"mover {seed}: {made} moves", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
