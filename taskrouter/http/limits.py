"""How much each key may ask: requests a minute, and at once. Pure: ``now`` comes in, a refusal or a place comes out."""

from __future__ import annotations

from collections import defaultdict

from taskrouter.http.failing import Refused
from taskrouter.http.keys import Caller

MINUTE_S = 60.0


class Bucket:
    """Requests of a minute that may come at any time in it: a full bucket that fills up evenly (GCRA)."""

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = 0.0

    def take(self, per_minute: int, now: float) -> float:
        """Take one; answers 0, or the seconds after which there is one."""
        each = MINUTE_S / per_minute
        full_at = max(self._full_at, now) + each
        if full_at - now > MINUTE_S:
            return full_at - now - MINUTE_S
        self._full_at = full_at
        return 0.0


MOST_STEPS = 50
"""What a key has under way counts for so many steps of priority at most."""


class Limits:
    """What every key has under way, and asked lately."""

    def __init__(self) -> None:
        self._of_task: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._buckets: defaultdict[str, Bucket] = defaultdict(Bucket)
        self._at_work: defaultdict[str, int] = defaultdict(int)

    def enter(self, caller: Caller, now: float, *, counts: bool = True) -> None:
        """Begin a request. Raises ``Refused`` (429), before anything is done for it.

        One that doesn't count has the place of another that is under way, and doesn't ``leave``.
        """
        if counts and caller.max_concurrency is not None and self._at_work[caller.name] >= caller.max_concurrency:
            text = f"this key has {caller.max_concurrency} requests under way, the most it may have"
            raise Refused(429, text, code="concurrency", retry_after_s=1.0)
        if caller.requests_per_minute is not None:
            wait_s = self._buckets[caller.name].take(caller.requests_per_minute, now)
            if wait_s > 0:
                text = f"this key may ask {caller.requests_per_minute} times a minute"
                raise Refused(429, text, code="rate_limit", retry_after_s=wait_s)
        if counts:
            self._at_work[caller.name] += 1

    def leave(self, caller: Caller) -> None:
        """End a request."""
        self._at_work[caller.name] -= 1
        if not self._at_work[caller.name]:
            del self._at_work[caller.name]

    def queue(self, caller: Caller, task: str) -> int:
        """Put a request for a task behind what its key has under way there: answers by how many steps of priority.

        A step is worth ``ageing_s`` of waiting, so a key's own requests stay in order, another key's come between them,
        and nobody is passed over for ever.
        """
        key = caller.name, task
        steps = self._of_task[key]
        self._of_task[key] += 1
        return min(steps, MOST_STEPS)

    def unqueue(self, caller: Caller, task: str) -> None:
        """The request has ended."""
        key = caller.name, task
        self._of_task[key] -= 1
        if not self._of_task[key]:
            del self._of_task[key]
