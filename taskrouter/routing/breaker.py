"""The health of one option: closed until it fails too much, then open for a growing while, then tried by one probe."""

from __future__ import annotations

from collections import deque

CONSECUTIVE = 5
LEAST, RATE, WINDOW_S = 10, 0.5, 30.0
OPEN_S, LONGEST_OPEN_S = 5.0, 120.0


class Breaker:
    """The health of one option. Closed until it fails too much; ``probe`` is the request that may try it meanwhile."""

    __slots__ = ("consecutive", "last", "open_s", "opened_at", "probe", "results")

    def __init__(self) -> None:
        self.consecutive = 0
        self.results: deque[tuple[float, bool]] = deque(maxlen=100)
        self.opened_at: float | None = None
        self.open_s = OPEN_S
        self.probe: object | None = None
        self.last = ""
        """What it failed with last, in words."""

    def __repr__(self) -> str:
        return f"<Breaker {'closed' if self.opened_at is None else 'open'} {self.consecutive} in a row>"

    def wait_s(self, now: float) -> float:
        """Seconds until a request is admitted; 0 where one is now."""
        if self.opened_at is None:
            return 0.0
        left = self.opened_at + self.open_s - now
        if left > 0:
            return min(left, self.open_s)  # a clock that went back must not keep it open for longer
        return 0.0 if self.probe is None else OPEN_S

    def succeeded(self, now: float) -> None:
        self.consecutive = 0
        self.results.append((now, True))
        if self.opened_at is not None:
            self.results.clear()
        self.opened_at, self.open_s, self.probe = None, OPEN_S, None

    def failed(self, now: float, request: object | None, *, trips: bool) -> None:
        self.consecutive += 1
        self.results.append((now, False))
        if self.opened_at is not None:
            if self.probe is request is not None:
                self.probe, self.opened_at = None, now
                self.open_s = min(2 * self.open_s, LONGEST_OPEN_S)
            return
        recent = [good for at, good in self.results if now - at <= WINDOW_S]
        too_many = len(recent) >= LEAST and recent.count(False) >= RATE * len(recent)
        if trips or self.consecutive >= CONSECUTIVE or too_many:
            self.opened_at, self.probe = now, None
