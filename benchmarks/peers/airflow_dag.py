"""Runs in Airflow's own environment: tasks that do nothing, each layer behind all of the one above.

A task's process parses this file first, and 90,000 edges take it two seconds. It needs none of
them to run its task, and makes that one alone: what Airflow's manual advises for generated DAGs.
"""

from __future__ import annotations

import os
from itertools import pairwise

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, get_parsing_context

WIDTH, DEPTH = (int(os.environ[f"LAYERS_{name}"]) for name in ("WIDTH", "DEPTH"))


def true(task_id: str) -> BashOperator:
    return BashOperator(task_id=task_id, bash_command="/bin/true", do_xcom_push=False)


with DAG("layers", schedule=None):
    if task_id := get_parsing_context().task_id:
        true(task_id)
    else:
        layers = [[true(f"t{layer}_{n}") for n in range(WIDTH)] for layer in range(DEPTH)]
        for above, below in pairwise(layers):
            for task in below:
                task.set_upstream(above)
