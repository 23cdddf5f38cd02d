"""What a trace holds: requests, and, where a manager recorded it, the decisions that were made meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from taskrouter.residency.events import message


@message
class Request:
    """Somebody asks for a task's model at ``at`` (seconds from the start of the trace) and uses it for ``hold_s``.

    ``priority``: ``None`` is the task's own.
    """

    at: float
    task: str
    hold_s: float
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A decision that was recorded: at ``at`` (on the trace's own clock), about models of these tasks, in words."""

    at: float
    tasks: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that is no request, and why. Lines count from 1."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole trace: requests in the order of their arrival, the first at 0.

    ``origin`` is the first request's time on the trace's own clock, which ``told`` keeps. ``broken`` holds the first of
    the ``broken_lines`` lines that could not be used.
    """

    requests: tuple[Request, ...]
    told: tuple[Told, ...] = ()
    origin: float = 0.0
    broken: tuple[Broken, ...] = ()
    broken_lines: int = 0
