"""DAGs: what is written of them, when they are due, and what of a run comes next.

Rule of this package: it reads jobs and starts them through `lifecycle`; a job never knows it.
`graph` and `cron` are pure: states and moments come in as arguments, a decision goes out.
"""
