"""How many requests a minute a provider is sent: a limit that is written, kept before it is met."""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0


class Pace:
    """At most ``per_minute`` requests in any 60 seconds, by the instants of the latest ones; future ones are booked."""

    __slots__ = ("_latest", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._latest: deque[float] = deque()

    def __repr__(self) -> str:
        return f"<Pace {self.per_minute} a minute, {len(self._latest)} known>"

    def at(self, now: float) -> float:
        """The first instant at which one more may go; never before those that are booked."""
        latest, most = self._latest, self.per_minute
        while latest and latest[0] <= now - WINDOW_S:
            latest.popleft()
        if not latest:
            return now
        return max(now, latest[-1], latest[-most] + WINDOW_S if len(latest) >= most else now)

    def take(self, now: float) -> float:
        """Book the first instant that is free, and answer it."""
        at = self.at(now)
        self._latest.append(at)
        return at

    def give_back(self, at: float) -> None:
        """What was booked for this instant wasn't sent. Harmless where that is forgotten."""
        if at in self._latest:
            self._latest.remove(at)
