"""How a command ends: its exit code, and what is said where it could not do what it was asked.

The rule of the codes: 2 where what was given is wrong (the file, the arguments, the input), 1 where the answer is no
or the work failed.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any, NoReturn, ParamSpec

import typer

from taskrouter.errors import (
    BadInput,
    ConfigError,
    NotExternal,
    ServerRefused,
    TaskRouterError,
    UnknownOption,
    UnknownTask,
    UnsupportedVerb,
)

logger = logging.getLogger("taskrouter")
P = ParamSpec("P")


class Exit(IntEnum):
    """The exit codes."""

    OK = 0
    NO = 1
    WRONG = 2
    INTERRUPTED = 130
    NOBODY_READS = 141


EPILOG = (
    "Exit codes: 0 done, or the answer is yes; 1 the answer is no, or the work failed; "
    "2 what was given is wrong (the file, the arguments, the input); 130 interrupted; 141 nobody read the output."
)

_WRONG = (ConfigError, UnknownTask, UnknownOption, UnsupportedVerb, NotExternal, BadInput)


def exit_code(error: TaskRouterError) -> Exit:
    """The code a command ends with on this error."""
    return Exit.WRONG if isinstance(error, _WRONG) else Exit.NO


def error_data(error: TaskRouterError) -> dict[str, Any]:
    """An error for programs."""
    # What another server said is told as it said it.
    status = error.status if isinstance(error, ServerRefused) else error.status_hint
    data: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "status": status}
    if error.retry_after_s is not None:
        data["retry_after_s"] = error.retry_after_s
    if isinstance(error, ConfigError):
        data["problems"] = [problem_data(problem) for problem in error.problems]
    return data


def problem_data(problem: Any) -> dict[str, Any]:
    """A problem or a warning of a file, for programs."""
    return {name: getattr(problem, name) for name in ("file", "line", "column", "path", "message", "hint")}


def complain(message: object) -> None:
    """Say what went wrong, on stderr; where that is closed, nothing (``print`` would take stdout instead)."""
    if sys.stderr is not None:
        print(f"taskrouter: {message}", file=sys.stderr)


def guarded(command: Callable[P, int]) -> Callable[P, None]:
    """A command that returns its exit code, as typer wants it; errors become messages.

    With ``--json`` the error is the document on stdout too.
    """

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        if sys.stdout is None:
            complain("stdout is closed, so there is nowhere to write the answer")
            raise typer.Exit(int(Exit.NOBODY_READS))
        try:
            code = command(*args, **kwargs)
            sys.stdout.flush()
        except TaskRouterError as error:
            code = _report(error, as_json=bool(kwargs.get("as_json")))
        except BrokenPipeError:
            # Python flushes stdout once more at its end, and would complain then.
            _give_up_stdout()
            code = Exit.NOBODY_READS
        except OSError as error:
            # What has a meaning was translated where it happened: this is a full disk, or no files to be opened.
            logger.info("the command ended in this", exc_info=True)
            complain(f"the system refused: {error}")
            code = Exit.NO
            try:
                sys.stdout.flush()
            except OSError:
                _give_up_stdout()
        except KeyboardInterrupt:
            complain("interrupted")
            code = Exit.INTERRUPTED
        raise typer.Exit(int(code))

    return guard


def leave(code: int) -> NoReturn:
    """End the process now. After an interrupt a thread may still be importing torch, whose own end-of-process clean-up
    then fails with tracebacks that nobody can use.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _report(error: TaskRouterError, *, as_json: bool) -> Exit:
    if as_json:
        from taskrouter.cli.printing import print_json

        print_json({"ok": False, "error": error_data(error)})
    for problem in error.problems if isinstance(error, ConfigError) else (error,):
        complain(problem)
    return exit_code(error)


def _give_up_stdout() -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # stdout is no file of this process: a test's, or closed already
        pass
