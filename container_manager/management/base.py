"""What all commands share: exit codes, errors in one line, and output that no reader can break.

A command is a thin door: it parses, calls one verb of `lifecycle` and renders what came of it.
From a shell every failure is one line on stderr and an exit code; `call_command` raises
CommandError with the same code as its `returncode`.
"""

from __future__ import annotations

import argparse
import getpass
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
    OutputWrapper,
    SystemCheckError,
)
from django.db import DatabaseError, InterfaceError, connections

from container_manager.exceptions import ContainerManagerError
from container_manager.management.tables import visible


class Exit(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING = 3
    INTERRUPTED = 130


def failed(message: str) -> CommandError:
    """It was tried and did not work out, or not for all jobs."""
    return CommandError(message, returncode=Exit.FAILED)


def wrong_usage(message: str) -> CommandError:
    """What was asked for makes no sense; nothing was done."""
    return CommandError(message, returncode=Exit.USAGE)


def nothing(message: str) -> CommandError:
    """No job matched; nothing was done."""
    return CommandError(message, returncode=Exit.NOTHING)


class JobCommand(BaseCommand):
    """The base of all commands about jobs."""

    # A wrong setting is told when it is read, in one line.
    requires_system_checks = []
    only_reads = False
    """True: without a reader there is no point in going on."""
    quiet = True
    """True: its lines tell what the log would repeat, unless -v2 asks for both."""
    examples = ""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Like Django's, but a usage error is one line, and the help shows examples."""
        kwargs.setdefault("epilog", self.examples)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.__class__ = _Parser
        for action in parser._actions:
            if action.dest in _HIDDEN:
                action.help = argparse.SUPPRESS
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        _be_a_guest_of_the_database()
        _be_lenient_with_the_terminal()
        self._open_closed_streams()
        try:
            super().run_from_argv(argv)
        except KeyboardInterrupt:
            if self.stderr.isatty():  # which shows ^C at the beginning of its line
                self.stderr.write("")
            self._leave(self.on_interrupt(), Exit.INTERRUPTED)

    def _open_closed_streams(self) -> None:
        """Who closes stdout or stderr (`>&-`) does not want to read, and gets no traceback."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, io.StringIO())
                setattr(self, name, OutputWrapper(getattr(sys, name)))

    def on_interrupt(self) -> str:
        """What to say after Ctrl-C."""
        return "interrupted"

    def execute(self, *args: Any, **options: Any) -> str | None:
        from_shell = getattr(self, "_called_from_command_line", False)
        if from_shell and self.quiet and options.get("verbosity", 1) < 2:
            _keep_moves_off_the_terminal()
        try:
            with _in_one_line():
                output = super().execute(*args, **options)
                self._flush()
        except BrokenPipeError:
            _mute(sys.stdout)
            return None
        except SystemCheckError:
            raise
        except CommandError as error:
            if not from_shell or options.get("traceback"):
                raise
            self._leave(str(error), error.returncode)
        return output

    def _leave(self, message: str, code: int) -> NoReturn:
        try:
            self._flush()
        except BrokenPipeError:
            _mute(sys.stdout)
        self.note(message)
        sys.exit(code)

    # Output

    @property
    def out(self) -> Any:
        """The stream itself: Django's wrapper ends every piece with a newline."""
        return getattr(self.stdout, "_out", self.stdout)

    def say(self, line: str = "") -> None:
        """One line of the result."""
        self.write(line + "\n")

    def write(self, text: str) -> None:
        """A piece of the result. A closed pipe stops a reading command, an acting one goes on."""
        try:
            self.out.write(text)
        except BrokenPipeError:
            if self.only_reads:
                raise
            _mute(self.out)

    def note(self, message: str) -> None:
        """One line beside the result, on stderr."""
        if message:
            try:
                self.stderr.write(f"{self.name}: {visible(message)}", lambda text: text)
            except BrokenPipeError:
                _mute(sys.stderr)

    def _flush(self) -> None:
        try:
            self.out.flush()
        except BrokenPipeError:
            if self.only_reads:
                raise
            _mute(self.out)


def actor() -> str:
    """Whom the history names for what a person does in a shell."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"


# Errors -------------------------------------------------------------------------------------------


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Errors that are nobody's bug become a CommandError of one line."""
    try:
        yield
    except ValidationError as error:
        raise wrong_usage(in_one_line(error)) from error
    except ImproperlyConfigured as error:
        raise wrong_usage(_line(error)) from error
    except ContainerManagerError as error:
        raise failed(_line(error)) from error
    except (DatabaseError, InterfaceError) as error:
        raise failed(_about_database(error)) from error


def in_one_line(error: ValidationError) -> str:
    """`field: message; field: message`."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return "; ".join(
        f"{field}: {' '.join(messages)}" if field != "__all__" else " ".join(messages)
        for field, messages in error.message_dict.items()
    )


def _about_database(error: Exception) -> str:
    text = _line(error)
    if "no such table" in text or ("relation" in text and "does not exist" in text):
        return f"the database is not ready ({text}): run `manage.py migrate` first"
    return f"the database does not work: {text}"


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# The process --------------------------------------------------------------------------------------


def _be_a_guest_of_the_database() -> None:
    """One connection, without a pool: a pool opens several, and retries for 30 s when refused."""
    for alias in connections:
        connections[alias].settings_dict.get("OPTIONS", {}).pop("pool", None)


def _be_lenient_with_the_terminal() -> None:
    """A locale that lacks a character shows its escape instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _keep_moves_off_the_terminal() -> None:
    for handler in logging.getLogger("container_manager").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.WARNING)


def _mute(stream: Any) -> None:
    """Nobody reads any more: what is still written, also at exit, goes nowhere."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    except (OSError, ValueError, AttributeError):
        pass


# The parser ---------------------------------------------------------------------------------------

_HIDDEN = {"version", "settings", "pythonpath", "force_color", "skip_checks"}


class _HelpFormatter(DjangoHelpFormatter):
    """Django's own options stand last; examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class _Parser(CommandParser):
    """Ends a usage error with one line."""

    def error(self, message: str) -> NoReturn:
        if not self.called_from_command_line:
            raise wrong_usage(visible(message))
        command = (self.prog or "").rpartition(" ")[2]
        self.exit(Exit.USAGE, f"{command}: {visible(message)}; see `{self.prog} --help`\n")
