"""Printing: JSON for programs, rich text for people, and a spinner where somebody is watching."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskrouter.residency.messages import size

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["amount", "console", "note", "print_json", "waiting"]

WIDTH_OF_A_FILE = 140
"""Columns where the output is no terminal."""

amount = size


def print_json(data: Any) -> None:
    """One document on stdout, whole or not at all."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def console() -> Console:
    """A console on stdout. Text is printed as it is: brackets in a path are no markup."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this while it handles the error; the guard ends the command

    width = None if sys.stdout.isatty() else WIDTH_OF_A_FILE
    return Plain(width=width, highlight=False, markup=False, emoji=False)


def note(message: str) -> None:
    """Something worth knowing that is no answer: on stderr, if that is open."""
    if sys.stderr is not None:
        print(f"taskrouter: {message}", file=sys.stderr)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner and the time on stderr while this lasts; nothing at all where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield
