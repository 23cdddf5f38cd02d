"""Which requests become spans: one costs a third of what a request does, so of thousands a second some are enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from taskrouter import telemetry
from taskrouter.manager import ModelManager

PER_SECOND = 100
LOOK_EVERY_S = 1.0
"""How often it is looked whether the application traces by now."""


class Tracing:
    """Of the requests that come without a ``traceparent`` the first ``per_second`` of each second (``None``: all).

    A client that sends one has decided for itself. What isn't a span has none: loads and evictions that a request leads
    to are recorded all the same, as the beginnings of traces of their own.
    """

    def __init__(
        self, manager: ModelManager, per_second: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tracer = manager.tracer
        self._on = manager.traces_itself
        self._per_second = per_second
        self._clock = clock
        self._since = clock()
        self._count = 0
        self._look_again = self._since

    def wants(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers is to be a span: not where nobody looks at them, for that costs, too."""
        if not self._on and not self._is_on():
            return False
        if self._per_second is None or b"traceparent" in headers:
            return True
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= self._per_second

    def _is_on(self) -> bool:
        if (now := self._clock()) >= self._look_again:
            self._look_again = now + LOOK_EVERY_S
            self._on = telemetry.is_set_up()
        return self._on
