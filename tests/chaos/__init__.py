"""Many jobs, several workers, random faults; then an oracle that judges what came of it.

    python -m tests.chaos --jobs 10000 --workers 8 --on postgres

Everything is real: `manage.py run_worker` processes that are killed, paused and drained, a database
of its own that is restarted and paused, jobs that are processes and containers. What ran is told by
the jobs themselves and by the engine, never by the records that are judged. The seed chooses jobs,
faults and requests; it is printed first. The exit code is 1 when anything does not hold.
"""
