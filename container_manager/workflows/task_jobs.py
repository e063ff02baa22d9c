"""The job that a task becomes when its turn has come."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from container_manager import lifecycle, retries
from container_manager.conf import settings
from container_manager.models import ContainerJob, DagRun, TaskInstance, validators
from container_manager.models.base import batched, database_now
from container_manager.workflows.spec import TaskSpec

BATCH = 500


def queue(
    run: DagRun, specs: Mapping[str, TaskSpec], tasks: Sequence[TaskInstance]
) -> dict[str, list[TaskInstance]]:
    """Make and queue the jobs of these waiting tasks of one run.

    Returns, by what is wrong, those of which no job can be made.
    """
    results = _results_of(run, {up for task in tasks for _, up, _ in _sources(specs[task.name])})
    refused: dict[str, list[TaskInstance]] = defaultdict(list)
    for batch in batched(tasks, BATCH):
        jobs = {task: _job(run, task, specs[task.name], results) for task in batch}
        for task, job in list(jobs.items()):
            if problem := _problem_of(job):
                refused[problem].append(task)
                del jobs[task]
        lifecycle.submit_all(list(jobs.values()))
        queued = TaskInstance.objects.filter(pk__in=[task.pk for task in jobs])
        queued.update(queued_at=database_now(lifecycle.USING))
    return refused


def _problem_of(job: ContainerJob) -> str:
    """What was right when it was written may be too much with what others printed."""
    size = sum(len(name) + len(value.encode()) for name, value in job.environment.items())
    if size > validators.MAX_ENVIRONMENT_BYTES:
        return (
            f"Its environment has {size} bytes with what environment_from brings;"
            f" at most {validators.MAX_ENVIRONMENT_BYTES} are allowed."
        )
    return ""


def _job(
    run: DagRun, task: TaskInstance, spec: TaskSpec, results: Mapping[str, dict[str, str]]
) -> ContainerJob:
    fields = dict(spec.job)
    return ContainerJob(
        **{
            **fields,
            "id": task.job_id,
            "name": f"{run.dag.name}.{task.task_id}"[:255],
            "created_by_id": run.dag.created_by_id,
            "managed_by": task.managed_by,
            "environment": _environment(run, task, spec, results),
            "retry_policy": _policy(fields.get("retry_policy", {}), spec.skip_exit_codes),
        }
    )


def _environment(
    run: DagRun, task: TaskInstance, spec: TaskSpec, results: Mapping[str, dict[str, str]]
) -> dict[str, str]:
    """What is nearer to the task wins: its own words, then the run's parameters."""
    return {
        **run.params,
        **spec.job.get("environment", {}),
        **{variable: results[up][field] for variable, up, field in _sources(spec)},
        "CM_DAG": run.dag.name,
        "CM_RUN_ID": run.run_id,
        "CM_TASK_ID": task.task_id,
        "CM_EXECUTION_DATE": run.execution_date.isoformat(),
        **({} if task.map_index is None else {"CM_ARRAY_INDEX": str(task.map_index)}),
    }


def _sources(spec: TaskSpec) -> Iterable[tuple[str, str, str]]:
    """Each variable that it is given, the task that it is read of, and `output` or `exit_code`."""
    for variable, source in spec.environment_from.items():
        upstream, _, field = source.rpartition(".")
        yield variable, upstream, field


def _policy(given: Any, skip_exit_codes: Collection[int]) -> Any:
    """An exit that means "skip" is not tried again."""
    if not skip_exit_codes:
        return given
    policy = asdict(retries.read_policy(given, settings.RETRY_POLICIES))
    never = {"on_exit_codes": list(skip_exit_codes), "action": "fail"}
    return {**policy, "rules": [never, *policy["rules"]]}


def _results_of(run: DagRun, names: Collection[str]) -> dict[str, dict[str, str]]:
    """By task name what its job printed and its exit code; of an array the JSON lists of them."""
    if not names:
        return {}
    rows = TaskInstance.objects.filter(dag_run=run, name__in=names).order_by("position")
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows.values("name", "map_index", "job__output", "job__exit_code"):
        found[row["name"]].append(row)
    return {name: _result(found[name]) for name in names}


def _result(rows: list[dict[str, Any]]) -> dict[str, str]:
    outputs = [_text(row["job__output"]) for row in rows]
    codes = [row["job__exit_code"] for row in rows]
    if rows[0]["map_index"] is None:
        return {"output": outputs[0], "exit_code": "" if codes[0] is None else str(codes[0])}
    return {"output": json.dumps(outputs), "exit_code": json.dumps(codes)}


def _text(output: str | None) -> str:
    """As a shell's `$(…)` would have it: without the last newlines, and no variable holds a NUL."""
    return (output or "").replace("\0", "").rstrip("\n")
