"""Commands as real processes: exit codes, one line for a mistake, pipes, locales, signals."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.commands.shell import PROJECT, Answer, Shell, eventually

# Each runs on an SQLite file of its own, whatever database the others use.
pytestmark = pytest.mark.sqlite


def is_one_line(answer: Answer, command: str) -> bool:
    return answer.err.startswith(f"{command}: ") and len(answer.err.splitlines()) == 1


def submit(shell: Shell, *options: str) -> str:
    answer = shell("submit_job", "--image", "busybox", *options, "--", "echo", "hello")
    assert answer.code == 0, answer.err
    return answer.out.strip()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("submit_job --image 'x y' -- echo", 2),
        ("submit_job --priority high -- echo", 2),
        ("submit_job --no-such-option", 2),
        ("job_logs", 2),
        ("kill_jobs 0190a1b2-0000-7000-8000-000000000000", 2),
        ("kill_jobs", 2),
        ("prune_jobs --all", 2),
        ("list_jobs", 3),
        ("kill_jobs --all", 3),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(line: str, code: int, shell: Shell) -> None:
    answer = shell.pipeline(f"manage {line}")
    assert (answer.code, answer.out) == (code, "")
    assert is_one_line(answer, line.split()[0]), answer.err


def test_one_refused_job_makes_exit_code_1(shell: Shell) -> None:
    job = submit(shell)
    assert shell("kill_jobs", job).code == 0
    answer = shell("kill_jobs", job)
    assert answer.code == 1
    assert is_one_line(answer, "kill_jobs"), answer.err


@pytest.mark.parametrize(
    "url", ["postgres://nobody@127.0.0.1:1/nothing", "sqlite:////there/is/no/directory/db"]
)
def test_a_database_that_is_down_is_one_line(url: str, shell: Shell) -> None:
    answer = shell("list_jobs", DATABASE_URL=url)
    assert (answer.code, answer.out) == (1, "")
    assert is_one_line(answer, "list_jobs"), answer.err


def test_a_database_without_tables_says_what_to_do(shell: Shell) -> None:
    answer = shell("demo", DATABASE_URL="sqlite://:memory:")
    assert answer.code == 1
    assert "run `manage.py migrate` first" in answer.err
    assert is_one_line(answer, "demo"), answer.err


def test_a_wrong_setting_is_one_line(shell: Shell) -> None:
    answer = shell("job_stats", CONTAINER_MANAGER_NO_SUCH_KEY="1")
    assert answer.code == 2
    assert is_one_line(answer, "job_stats"), answer.err


def test_a_closed_pipe_is_no_error(shell: Shell) -> None:
    for _ in range(2):
        submit(shell)
    answer = shell.pipeline("manage list_jobs --json | head -c 1; manage list_jobs >&-")
    assert "Traceback" not in answer.err
    assert "Exception ignored" not in answer.err
    answer = shell.pipeline("manage list_jobs --json | true; exit ${PIPESTATUS[0]}")
    assert (answer.code, answer.err) == (0, "")


def test_a_verb_does_all_its_work_though_nobody_reads(shell: Shell) -> None:
    job = submit(shell)
    answer = shell.pipeline("manage kill_jobs --all | true")
    assert (answer.code, answer.err) == (0, "")
    assert "killed" in shell("list_jobs", job).out


def test_a_locale_without_the_characters_is_no_error(shell: Shell) -> None:
    submit(shell, "--name", "häßlich \N{SNOWMAN}")
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    answer = shell("list_jobs", **ascii_only)
    assert answer.code == 0
    assert "h\\xe4\\xdflich \\u2603" in answer.out
    undecodable = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    answer = shell("submit_job", "--image", "x", "--name", "ä", "--", "a", **undecodable)
    assert answer.code in (0, 2)
    assert "Traceback" not in answer.err


def test_moves_are_not_told_twice_unless_asked(shell: Shell) -> None:
    submit(shell)
    assert shell("cancel_jobs", "--all", "--dry-run").err == ""
    answer = shell("cancel_jobs", "--all", "-v", "2")
    assert "queued -> cancelled" in answer.err


def test_a_real_terminal_gets_a_table_without_its_width_exceeded(shell: Shell) -> None:
    submit(shell, "--name", "a name that is longer than the column " * 3)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "manage.py", "list_jobs"],
        env=shell.environment | {"COLUMNS": "80", "TERM": "dumb"},
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
    ) as process:
        assert process.wait(60) == 0
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert lines[0].startswith("ID ")
    assert all(len(line) <= 80 for line in lines)


def has_open(pid: int, path: Path) -> bool:
    """Does this process have that file open?"""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(os.path.realpath(link) == os.path.realpath(path) for link in links)


@pytest.mark.parametrize("command", ["submit_job", "job_logs"])
def test_ctrl_c_ends_in_order(command: str, shell: Shell) -> None:
    if command == "submit_job":
        process = shell.start("submit_job", "--wait", "--image", "x", "--", "a")
        eventually(lambda: shell("list_jobs").code == 0)
    else:
        process = shell.start("job_logs", "--follow", submit(shell))
        eventually(lambda: has_open(process.pid, shell.database))
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


def test_the_exit_code_is_there_for_django_code_too() -> None:
    with pytest.raises(CommandError) as caught:
        call_command("submit_job", "--hold", "--wait", "--image", "x", "--", "a")
    assert caught.value.returncode == 2


def test_migrate_repairs_a_guard_that_differs_and_no_check_stands_in_its_way(shell: Shell) -> None:
    with contextlib.closing(sqlite3.connect(shell.database)) as connection:
        connection.execute("DROP TRIGGER cm_guard_update_container_jobs")
        connection.commit()
    assert shell("check", "--database", "default").code == 1
    assert shell("migrate").code == 0
    assert shell("check", "--database", "default").code == 0
