"""Deciding which option answers, and the health and limits that this is decided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from taskrouter.routing.breaker import Breaker
from taskrouter.routing.faults import RULES, Fault
from taskrouter.routing.pace import LATE_S, Pace
from taskrouter.verbs import Passed, Why

PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
TICK_S = 0.001
SPREAD, LONGEST_SPREAD_S = 0.1, 1.0
"""How much later than its ``Retry-After`` one is asked again, at most, so that not all come at that instant."""
LONGEST_LIMITED_S = 3600.0
"""The longest that a ``Retry-After`` is believed."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One option as it is now.

    ``name`` identifies it over all tasks, ``option`` within its task. ``ready``: loaded, or external; ``start_s`` is
    when it could start on this request (seconds from now). ``barred`` is what keeps it from being used at all;
    ``per_minute`` the requests its provider may be sent in any minute, where that is written. ``account`` is whom a
    limit that the provider itself tells is for: its name where there is but one address and key of it.
    """

    name: str
    option: str
    provider: str | None = None
    ready: bool = True
    start_s: float = 0.0
    barred: Passed | None = None
    max_retries: int = 0
    per_minute: int | None = None
    account: str | None = None

    @property
    def limited_as(self) -> str | None:
        """What a limit that this option meets is kept under."""
        return self.account or self.provider


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
    """One request's way through the options. ``passed`` are those passed over before the one that is tried.

    ``asks``: each try is a request to the provider, and not only a lease. ``booked`` are the instants that wait for it
    at providers with a written limit, ``sent`` the last one it used.
    """

    deadline: float
    when_cold: str = "wait"
    asks: bool = True
    failed: dict[str, Passed] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    again_at: dict[str, float] = field(default_factory=dict)
    passed: tuple[Passed, ...] = ()
    trying: Candidate | None = None
    over: bool = False
    booked: dict[str, float] = field(default_factory=dict)
    sent: float | None = None


class Routing:
    """The health of all options and providers, and the only code that changes it. See the module's rules."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._limited: dict[str, tuple[float, str]] = {}
        self._paces: dict[str, Pace] = {}

    def __repr__(self) -> str:
        unwell = [name for name, breaker in self._breakers.items() if breaker.opened_at is not None]
        return f"<Routing {len(unwell)} breakers open, {len(self._limited)} accounts limited>"

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
                unready = [Passed(each.option, Why.COLD, "not loaded") for each in open_[1:] if not each.ready]
                open_, warm = ready, True
                passed = [cold, *unready, *passed]
        elif too_slow:
            warm = True  # or it would never be loaded, and never be quick
        request.passed = tuple(sorted(passed, key=lambda each: _place(candidates, each.option)))
        if open_:
            before = _place(candidates, open_[0].option)
            request.passed = tuple(each for each in request.passed if _place(candidates, each.option) < before)
            return self._try(request, open_, now, warm=warm)
        again = self._again(request, candidates, now)
        if isinstance(again, Try):
            return again
        sooner = again.until if isinstance(again, Wait) else request.deadline + TICK_S
        return self._book(request, candidates, now, sooner) or again or self._over(request, request.passed)

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

    def _book(self, request: Request, candidates: Sequence[Candidate], now: float, before: float) -> Wait | None:
        """With nobody else left before then: wait for the first free instant of a provider with a written limit."""
        found: tuple[float, str] | None = None
        for candidate in candidates:
            provider = candidate.provider or ""
            pace = self._pace(request, candidate)
            if pace is None or candidate.name in request.failed:
                continue
            why = self._passed(request, candidate, now, paced=False)
            if why is None:
                at = self._free_at(request, provider, now)
                if at <= request.deadline and at < before and (found is None or at < found[0]):
                    found = at, provider
        if found is None:
            return None
        at, provider = found
        if provider not in request.booked:
            at = request.booked[provider] = self._paces[provider].take(now)
        return Wait(max(at, now + TICK_S))

    def _pace(self, request: Request, candidate: Candidate) -> Pace | None:
        """What bounds how often this option is asked, where this request asks at all."""
        most, provider = candidate.per_minute, candidate.provider
        if most is None or provider is None or not request.asks:
            return None
        pace = self._paces.get(provider)
        if pace is None:
            pace = self._paces[provider] = Pace(most)
        pace.per_minute = most
        return pace

    def _free_at(self, request: Request, provider: str, now: float) -> float:
        """When the provider may be sent this request: what it booked, unless that is long past."""
        pace, at = self._paces[provider], request.booked.get(provider)
        if at is not None and now - at > LATE_S:
            pace.give_back(request.booked.pop(provider))
            at = None
        return pace.at(now) if at is None else at

    def _give_back(self, request: Request) -> None:
        """Instants that were booked and aren't used are others'."""
        for provider, at in request.booked.items():
            self._paces[provider].give_back(at)
        request.booked.clear()

    def _try(self, request: Request, open_: list[Candidate], now: float, *, warm: bool) -> Try:
        first = open_[0]
        # What would be asked next must have time to start, should this one not be ready in time.
        others = [other.start_s for other in open_[1:]]
        ready_by = request.deadline - min(others, default=0.0)
        if others and first.ready and first.start_s > 0:
            # Busy, not cold: its queue may use half of the time while somebody else could be asked.
            ready_by = min(ready_by, now + (request.deadline - now) / 2)
        request.trying = first
        pace = self._pace(request, first)
        if pace is not None:
            at = request.booked.pop(first.provider or "", None)
            request.sent = pace.take(now) if at is None else at
        breaker = self._breakers.get(first.name)
        if breaker is not None and breaker.opened_at is not None:
            breaker.probe = request
        return Try(first, max(ready_by, now), warm)

    def _passed(
        self, request: Request, candidate: Candidate, now: float, *, again: bool = False, paced: bool = True
    ) -> Passed | None:
        if candidate.name in request.failed and not again:
            return request.failed[candidate.name]
        if candidate.barred is not None:
            return candidate.barred
        limited = self._limited.get(candidate.limited_as or "")
        if limited is not None:
            until, text = limited
            if now < until and until - now <= LONGEST_LIMITED_S:
                return Passed(candidate.option, Why.RATE_LIMIT, text, until - now)
            del self._limited[candidate.limited_as or ""]
        breaker = self._breakers.get(candidate.name)
        wait_s = breaker.wait_s(now) if breaker is not None else 0.0
        if wait_s:
            assert breaker is not None
            often = f"{breaker.consecutive} times in a row" if breaker.consecutive > 1 else "lately"
            text = f"it failed {often}, last with: {breaker.last}"
            return Passed(candidate.option, Why.BREAKER, text, wait_s)
        # A clock is a little late: what starts at once is in time even at the deadline itself.
        left = max(request.deadline - now, 0.0)
        if candidate.start_s > left:
            text = f"it could start in about {candidate.start_s:.1f} s, and {left:.1f} s are left"
            return Passed(candidate.option, Why.TOO_SLOW, text, None)
        pace = self._pace(request, candidate) if paced else None
        if pace is not None:
            at = self._free_at(request, candidate.provider or "", now)
            if at > now:
                name = f"providers.{candidate.provider}.requests_per_minute"
                text = f"all of its {pace.per_minute} requests a minute were sent ({name})"
                return Passed(candidate.option, Why.RATE_LIMIT, text, at - now)
        return None

    # --- how a try ended -----

    def answered(self, request: Request, *, now: float) -> None:
        """The option answered (a refusal is an answer)."""
        candidate = self._ended(request)
        request.over = True
        self._give_back(request)
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
        if retry_after_s is None:
            at = again_at = now + min(PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S) * (1 - 0.25 * jitter)
        else:
            said_s = min(retry_after_s, LONGEST_LIMITED_S)
            at = now + said_s
            again_at = at + min(SPREAD * said_s, LONGEST_SPREAD_S) * jitter
            if at <= request.deadline:
                again_at = min(again_at, request.deadline)
        if rule.limits:
            self._limit(candidate.limited_as, at, text)
        if not rule.elsewhere:
            request.over = True
            self._give_back(request)
            return False
        request.failed[candidate.name] = Passed(candidate.option, why or rule.why, text, retry_after_s)
        if rule.again and tries <= candidate.max_retries:
            request.again_at[candidate.name] = again_at
        return True

    def _limit(self, account: str | None, until: float, text: str) -> None:
        if account is not None and until > self._limited.get(account, (until - 1.0, ""))[0]:
            self._limited[account] = (until, text)

    def broke(
        self,
        name: str,
        account: str | None,
        fault: Fault,
        text: str,
        *,
        now: float,
        retry_after_s: float | None = None,
    ) -> None:
        """An answer that had begun broke off: too late to ask elsewhere, but it may speak against the option."""
        rule = RULES[fault]
        if rule.limits:
            self._limit(account, now + min(retry_after_s or PAUSE_S, LONGEST_LIMITED_S), text)
        if rule.counts:
            breaker = self._breakers.setdefault(name, Breaker())
            breaker.failed(now, None, trips=False)
            breaker.last = text

    def forget(self, name: str, account: str | None) -> None:
        """Take an option, and the account it is asked by, for healthy."""
        self._breakers.pop(name, None)
        self._limited.pop(account or "", None)

    def put_back(self, request: Request) -> None:
        """The option wasn't asked after all: decide anew."""
        if request.trying is not None:
            provider, at = request.trying.provider or "", request.sent
            if at is not None and provider in self._paces:
                self._paces[provider].give_back(at)
            self.left(request)
            request.over = False

    def left(self, request: Request) -> None:
        """The caller went away. Harmless where nothing is being tried."""
        if request.trying is not None:
            candidate = self._ended(request)
            breaker = self._breakers.get(candidate.name)
            if breaker is not None and breaker.probe is request:
                breaker.probe = None
        self._give_back(request)
        request.over = True

    @staticmethod
    def _ended(request: Request) -> Candidate:
        candidate, request.trying = request.trying, None
        assert candidate is not None, "what ends was begun"
        return candidate

    def _over(self, request: Request, passed: tuple[Passed, ...], *, cold: bool = False) -> Refused:
        self._give_back(request)
        request.over = True
        return Refused(passed, cold)


def _place(candidates: Sequence[Candidate], option: str) -> int:
    return next(place for place, each in enumerate(candidates) if each.option == option)
