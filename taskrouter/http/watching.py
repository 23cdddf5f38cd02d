"""Clients that go away are noticed, once their request has taken a while: one timer looks after all of them."""

from __future__ import annotations

import asyncio
from typing import Protocol

WATCH_AFTER_S = 0.25
"""What is answered sooner isn't worth watching over: that takes a task of its own for each."""


class Watched(Protocol):
    """A request under way."""

    def begin_to_watch(self) -> None: ...


class Watching:
    """The requests of one server that are young, oldest first."""

    def __init__(self) -> None:
        self._since: dict[Watched, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, young: Watched) -> None:
        """From ``WATCH_AFTER_S`` on it is to be watched over."""
        loop = asyncio.get_running_loop()
        self._since[young] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(WATCH_AFTER_S, self._look, loop)

    def discard(self, young: Watched) -> None:
        """It is over."""
        self._since.pop(young, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for each, since in list(self._since.items()):
            due = since + WATCH_AFTER_S
            if due > now:
                # Those that come meanwhile are looked at then, too: it is one timer, however many there are.
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._since[each]
            each.begin_to_watch()
