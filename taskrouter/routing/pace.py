"""How many requests a minute a provider is sent: a limit that is written, kept before it is met."""

from __future__ import annotations

from collections import deque

LATE_S = 1.0
"""What was booked for an instant is used so much later at most."""
WINDOW_S = 60.0 + LATE_S
"""So requests that are late by that are still within a minute's limit."""


class Pace:
    """At most ``per_minute`` requests in any 60 seconds, by the instants of the latest ones; future ones are booked."""

    __slots__ = ("_given_back", "_latest", "per_minute")

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._latest: deque[float] = deque()
        self._given_back: list[float] = []

    def __repr__(self) -> str:
        return f"<Pace {self.per_minute} a minute, {len(self._latest)} known>"

    def at(self, now: float) -> float:
        """The first instant at which one more may go: one that was given back, else none before those booked."""
        latest, most = self._latest, self.per_minute
        while latest and latest[0] <= now - WINDOW_S:
            latest.popleft()
        for past in [at for at in self._given_back if at < now]:
            self._given_back.remove(past)
            if past in latest:
                latest.remove(past)  # nothing went then
        after = max(now, latest[-1], latest[-most] + WINDOW_S if len(latest) >= most else now) if latest else now
        return min(self._given_back, default=after)

    def take(self, now: float) -> float:
        """Book the first instant that is free, and answer it."""
        at = self.at(now)
        if at in self._given_back:
            self._given_back.remove(at)
        else:
            self._latest.append(at)
        return at

    def give_back(self, at: float) -> None:
        """What was booked for this instant wasn't sent: it is somebody else's. Harmless where that is forgotten."""
        if self._latest.count(at) > self._given_back.count(at):
            self._given_back.append(at)
