"""Which option of a task answers a request: the selected one, then its fallbacks, in order. Pure: ``now`` is handed in.

1. An option is passed over while it can't serve: it can't be used or can't fit, is cooling down, its breaker is open,
   its provider's limit or budget is spent, it can't do what is asked, or it would start after the deadline.
2. The first that is left is tried. What it fails with has a rule (``RULES``): try elsewhere, try it again, neither; and
   whether it speaks against the option (its breaker), or its whole provider (a rate limit).
3. When nothing else is left, an option whose failure allows it is tried again, after its ``Retry-After`` or a growing,
   jittered pause, up to ``max_retries`` times and never past the deadline.
4. When all are passed over, the request is refused with every reason.

A **breaker** opens after ``CONSECUTIVE`` failures in a row, or where half of at least ``LEAST`` calls within
``WINDOW_S`` failed. Open, it admits nobody for ``OPEN_S`` seconds, doubled with each failed probe; then one request at
a time is the probe: an answer closes it, and a caller who leaves hands the probe on. So no breaker stays open that
nobody may probe.

Every ``Try`` is followed by exactly one of ``answered``, ``failed`` or ``left``; all state of health is in ``Routing``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from taskrouter.verbs import Passed, Why

CONSECUTIVE = 5
LEAST, RATE, WINDOW_S = 10, 0.5, 30.0
OPEN_S, LONGEST_OPEN_S = 5.0, 120.0
PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
TICK_S = 0.001
LONGEST_LIMITED_S = 3600.0
"""The longest that a ``Retry-After`` is believed."""


class Fault(Enum):
    """What a try ended in, told apart by what it says of the option."""

    BAD_REQUEST = "bad_request"
    UNABLE = "unable"
    AUTH = "auth"
    QUOTA = "quota"
    BUDGET = "budget"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BROKE_OFF = "broke_off"
    BROKEN = "broken"
    NO_KEY = "no_key"
    NOT_READY = "not_ready"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Rule:
    """``elsewhere``: the next option may be asked. ``again``: so may this one. ``counts``: it speaks against the
    option; ``trips``: so much that its breaker opens at once. ``limits``: the provider takes nothing for a while."""

    why: Why
    elsewhere: bool = True
    again: bool = False
    counts: bool = False
    trips: bool = False
    limits: bool = False


RULES: Mapping[Fault, Rule] = {
    Fault.BAD_REQUEST: Rule(Why.FAILED, elsewhere=False),
    Fault.UNABLE: Rule(Why.UNABLE),
    Fault.AUTH: Rule(Why.AUTH, counts=True, trips=True),
    Fault.QUOTA: Rule(Why.RATE_LIMIT, again=True, limits=True),
    Fault.BUDGET: Rule(Why.BUDGET),
    Fault.OVERLOAD: Rule(Why.OVERLOADED, again=True, counts=True),
    Fault.TIMEOUT: Rule(Why.TIMEOUT, counts=True),
    Fault.CONNECTION: Rule(Why.CONNECTION, again=True, counts=True),
    Fault.BROKE_OFF: Rule(Why.CONNECTION, counts=True),
    Fault.BROKEN: Rule(Why.FAILED, counts=True),
    Fault.NO_KEY: Rule(Why.AUTH),
    Fault.NOT_READY: Rule(Why.NOT_READY),
    Fault.FINAL: Rule(Why.FAILED, elsewhere=False),
}
"""A bad request is bad everywhere; a call that broke in mid-answer (``FINAL``) can't be taken back."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One option as it is now.

    ``name`` identifies it over all tasks, ``option`` within its task. ``ready``: loaded, or external; ``start_s`` is
    when it could start on this request (seconds from now). ``barred`` is what keeps it from being used at all.
    """

    name: str
    option: str
    provider: str | None = None
    ready: bool = True
    start_s: float = 0.0
    barred: Passed | None = None
    max_retries: int = 0


@dataclass(frozen=True, slots=True)
class Try:
    """Ask this option now; a local one must be ready by ``ready_by``. ``warm``: load the selected one meanwhile, which
    is passed over only because that takes too long for this request."""

    candidate: Candidate
    ready_by: float
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be asked before this instant; come back then."""

    until: float


@dataclass(frozen=True, slots=True)
class Refused:
    """No option is left. ``cold``: because the selected one isn't loaded, and ``when_cold: fail`` is written."""

    passed: tuple[Passed, ...]
    cold: bool = False


Decision: TypeAlias = Try | Wait | Refused


@dataclass(slots=True)
class Request:
    """One request's way through the options. ``passed`` are those passed over before the one that is tried."""

    deadline: float
    when_cold: str = "wait"
    failed: dict[str, Passed] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    again_at: dict[str, float] = field(default_factory=dict)
    passed: tuple[Passed, ...] = ()
    trying: Candidate | None = None
    over: bool = False


class Breaker:
    """The health of one option. Closed until it fails too much; ``probe`` is the request that may try it meanwhile."""

    __slots__ = ("consecutive", "last", "open_s", "opened_at", "probe", "results")

    def __init__(self) -> None:
        self.consecutive = 0
        self.results: deque[tuple[float, bool]] = deque(maxlen=100)
        self.opened_at: float | None = None
        self.open_s = OPEN_S
        self.probe: Request | None = None
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

    def failed(self, now: float, request: Request | None, *, trips: bool) -> None:
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


class Routing:
    """The health of all options and providers, and the only code that changes it. See the module's rules."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._limited: dict[str, tuple[float, str]] = {}

    def __repr__(self) -> str:
        unwell = [name for name, breaker in self._breakers.items() if breaker.opened_at is not None]
        return f"<Routing {len(unwell)} breakers open, {len(self._limited)} providers limited>"

    def decide(self, request: Request, candidates: Sequence[Candidate], *, now: float) -> Decision:
        """What is done with a request next. ``candidates`` are as they are at this instant, the selected one first."""
        assert request.trying is None, "one try at a time"
        passed: list[Passed] = []
        open_: list[Candidate] = []
        for candidate in candidates:
            why = self._passed(request, candidate, now)
            if why is None:
                open_.append(candidate)
            else:
                passed.append(why)
        selected = candidates[0]
        warm = False
        too_slow = not selected.ready and any(each.why is Why.TOO_SLOW for each in passed[:1])
        if too_slow and request.when_cold == "fail":
            open_, passed = [selected, *open_], passed[1:]
        if open_ and open_[0] is selected and not selected.ready:
            text = f"not loaded, which takes about {selected.start_s:.0f} s" if selected.start_s else "not loaded"
            cold = Passed(selected.option, Why.COLD, text, selected.start_s or None)
            if request.when_cold == "fail":
                return self._over(request, (cold, *passed), cold=True)
            ready = [other for other in open_[1:] if other.ready]
            if request.when_cold == "fallback" and ready:
                open_, warm = ready, True
                passed = [cold, *passed]
        elif too_slow:
            warm = True  # or it would never be loaded, and never be quick
        request.passed = tuple(sorted(passed, key=lambda each: _place(candidates, each.option)))
        if open_:
            before = _place(candidates, open_[0].option)
            request.passed = tuple(each for each in request.passed if _place(candidates, each.option) < before)
            return self._try(request, open_, now, warm=warm)
        return self._again(request, candidates, now) or self._over(request, request.passed)

    def _again(self, request: Request, candidates: Sequence[Candidate], now: float) -> Decision | None:
        """With nobody else left: ask one again whose pause is over, or wait for the first whose pause will be."""
        waits: list[float] = []
        for candidate in candidates:
            at = request.again_at.get(candidate.name)
            if at is None:
                continue
            why = self._passed(request, candidate, now, again=True)
            if why is None and at <= now:
                del request.again_at[candidate.name], request.failed[candidate.name]
                return self._try(request, [candidate], now, warm=False)
            if why is None or (why.why in (Why.RATE_LIMIT, Why.BREAKER) and why.retry_after_s is not None):
                # Others may have met a limit, or a breaker opened, meanwhile: that is waited for as well.
                waits.append(max(at, now + ((why and why.retry_after_s) or 0.0)))
        soonest = min(waits, default=None)
        return None if soonest is None or soonest > request.deadline else Wait(max(soonest, now + TICK_S))

    def _try(self, request: Request, open_: list[Candidate], now: float, *, warm: bool) -> Try:
        first = open_[0]
        # What would be asked next must have time to start, should this one not be ready in time.
        others = [other.start_s for other in open_[1:]]
        ready_by = request.deadline - min(others, default=0.0)
        if others and first.ready and first.start_s > 0:
            # Busy, not cold: its queue may use half of the time while somebody else could be asked.
            ready_by = min(ready_by, now + (request.deadline - now) / 2)
        request.trying = first
        breaker = self._breakers.get(first.name)
        if breaker is not None and breaker.opened_at is not None:
            breaker.probe = request
        return Try(first, max(ready_by, now), warm)

    def _passed(self, request: Request, candidate: Candidate, now: float, *, again: bool = False) -> Passed | None:
        if candidate.name in request.failed and not again:
            return request.failed[candidate.name]
        if candidate.barred is not None:
            return candidate.barred
        limited = self._limited.get(candidate.provider or "")
        if limited is not None:
            until, text = limited
            if now < until and until - now <= LONGEST_LIMITED_S:
                return Passed(candidate.option, Why.RATE_LIMIT, text, until - now)
            del self._limited[candidate.provider or ""]
        breaker = self._breakers.get(candidate.name)
        wait_s = breaker.wait_s(now) if breaker is not None else 0.0
        if wait_s:
            assert breaker is not None
            text = f"it failed {breaker.consecutive} times in a row, last with: {breaker.last}"
            return Passed(candidate.option, Why.BREAKER, text, wait_s)
        # A clock is a little late: what starts at once is in time even at the deadline itself.
        left = max(request.deadline - now, 0.0)
        if candidate.start_s > left:
            text = f"it could start in about {candidate.start_s:.1f} s, and {left:.1f} s are left"
            return Passed(candidate.option, Why.TOO_SLOW, text, None)
        return None

    # --- how a try ended -----

    def answered(self, request: Request, *, now: float) -> None:
        """The option answered (a refusal is an answer)."""
        candidate = self._ended(request)
        request.over = True
        breaker = self._breakers.get(candidate.name)
        if breaker is not None:
            breaker.succeeded(now)

    def failed(
        self,
        request: Request,
        fault: Fault,
        text: str,
        *,
        now: float,
        why: Why | None = None,
        retry_after_s: float | None = None,
        jitter: float = 0.0,
    ) -> bool:
        """The option failed; whether anything else may be tried for this request.

        ``why`` is shown instead of the rule's own reason; ``jitter`` is from 0 to 1.
        """
        candidate = self._ended(request)
        rule = RULES[fault]
        if rule.counts:
            breaker = self._breakers.setdefault(candidate.name, Breaker())
            breaker.failed(now, request, trips=rule.trips)
            breaker.last = text
        elif (healthy := self._breakers.get(candidate.name)) is not None and healthy.probe is request:
            healthy.probe = None  # it says nothing of the option's health: the next request is the probe
        tries = request.tries[candidate.name] = request.tries.get(candidate.name, 0) + 1
        pause = min(PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * (1 - 0.25 * jitter)
        at = now + (pause if retry_after_s is None else min(retry_after_s, LONGEST_LIMITED_S))
        if rule.limits:
            self._limit(candidate.provider, at, text)
        if not rule.elsewhere:
            request.over = True
            return False
        request.failed[candidate.name] = Passed(candidate.option, why or rule.why, text, retry_after_s)
        if rule.again and tries <= candidate.max_retries:
            request.again_at[candidate.name] = at
        return True

    def _limit(self, provider: str | None, until: float, text: str) -> None:
        if provider is not None and until > self._limited.get(provider, (until - 1.0, ""))[0]:
            self._limited[provider] = (until, text)

    def broke(
        self,
        name: str,
        provider: str | None,
        fault: Fault,
        text: str,
        *,
        now: float,
        retry_after_s: float | None = None,
    ) -> None:
        """An answer that had begun broke off: too late to ask elsewhere, but it may speak against the option."""
        rule = RULES[fault]
        if rule.limits:
            self._limit(provider, now + min(retry_after_s or PAUSE_S, LONGEST_LIMITED_S), text)
        if rule.counts:
            breaker = self._breakers.setdefault(name, Breaker())
            breaker.failed(now, None, trips=False)
            breaker.last = text

    def forget(self, name: str, provider: str | None) -> None:
        """Take an option, and its provider, for healthy."""
        self._breakers.pop(name, None)
        self._limited.pop(provider or "", None)

    def put_back(self, request: Request) -> None:
        """The option wasn't asked after all: decide anew."""
        if request.trying is not None:
            self.left(request)
            request.over = False

    def left(self, request: Request) -> None:
        """The caller went away. Harmless where nothing is being tried."""
        if request.trying is not None:
            candidate = self._ended(request)
            breaker = self._breakers.get(candidate.name)
            if breaker is not None and breaker.probe is request:
                breaker.probe = None
        request.over = True

    @staticmethod
    def _ended(request: Request) -> Candidate:
        candidate, request.trying = request.trying, None
        assert candidate is not None, "what ends was begun"
        return candidate

    @staticmethod
    def _over(request: Request, passed: tuple[Passed, ...], *, cold: bool = False) -> Refused:
        request.over = True
        return Refused(passed, cold)


def _place(candidates: Sequence[Candidate], option: str) -> int:
    return next(place for place, each in enumerate(candidates) if each.option == option)
