"""Routing under whatever happens: no request is lost or answered twice, and no breaker stays open for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskrouter import routing
from taskrouter.routing import Candidate, Fault, Refused, Request, Routing, Try, Wait
from taskrouter.verbs import Passed, Why

OPTIONS = ("a", "b", "c")
PROVIDERS = {"a": None, "b": "acme", "c": "acme"}


class Traffic(RuleBasedStateMachine):
    """Requests begin, options fail and answer, callers leave, time passes."""

    @initialize(per_minute=st.none() | st.integers(1, 4))
    def begin(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self.sent: list[float] = []
        self.core = Routing()
        self.now = 0.0
        self.working: list[tuple[Request, Candidate]] = []
        self.waiting: list[tuple[Request, float]] = []
        self.begun = self.ended = 0
        self.tries: dict[int, dict[str, int]] = {}
        self.cap, self.spent, self.most_over = 10, 0, 0

    def candidates(self, **more: Any) -> list[Candidate]:
        spent = Passed("c", Why.BUDGET, "spent") if self.spent >= self.cap else None
        return [
            Candidate(
                f"t/{name}", name, PROVIDERS[name], max_retries=1, barred=spent if name == "c" else None,
                per_minute=self.per_minute, **more,
            )
            for name in OPTIONS
        ]  # fmt: skip

    def go_on(self, way: Request) -> None:
        decision = self.core.decide(way, self.candidates(), now=self.now)
        match decision:
            case Try(candidate):
                count = self.tries[id(way)].get(candidate.name, 0) + 1
                self.tries[id(way)][candidate.name] = count
                assert count <= candidate.max_retries + 1, "asked more often than allowed"
                assert decision.ready_by >= self.now
                if candidate.provider is not None:
                    self.sent.append(self.now)
                self.working.append((way, candidate))
            case Wait(until):
                assert self.now <= until <= way.deadline
                self.waiting.append((way, until))
            case Refused(passed):
                assert {each.option for each in passed} == set(OPTIONS), "a reason for every option"
                self.end(way)

    def end(self, way: Request) -> None:
        self.ended += 1
        assert way.over
        self.tries.pop(id(way))

    @rule(wait=st.floats(0.1, 60))
    def ask(self, wait: float) -> None:
        way = Request(self.now + wait)
        self.begun += 1
        self.tries[id(way)] = {}
        self.go_on(way)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), fault=st.sampled_from(list(Fault)), after=st.none() | st.floats(0, 20))
    def fail(self, data: st.DataObject, fault: Fault, after: float | None) -> None:
        way, _ = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        if self.core.failed(way, fault, "x", now=self.now, retry_after_s=after, jitter=0.5):
            self.go_on(way)
        else:
            self.end(way)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        way, candidate = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        self.core.answered(way, now=self.now)
        if candidate.option == "c":
            self.spent += 1
        self.end(way)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        way, _ = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        self.core.left(way)
        self.core.left(way)
        self.end(way)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave_waiting(self, data: st.DataObject) -> None:
        way, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.core.left(way)
        self.end(way)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        way, candidate = self.working.pop(data.draw(st.integers(0, len(self.working) - 1)))
        self.core.put_back(way)
        self.tries[id(way)][candidate.name] -= 1
        if candidate.provider is not None and way.sent is not None:
            self.sent.remove(way.sent)
        self.go_on(way)

    @rule(seconds=st.floats(0, 200))
    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((each for each in self.waiting if each[1] <= end), key=lambda each: each[1]):
            way, until = due[0]
            self.waiting.remove(due[0])
            self.now = max(self.now, until)
            self.go_on(way)
        self.now = end

    @invariant()
    def nobody_is_lost(self) -> None:
        if hasattr(self, "core"):
            assert self.begun == self.ended + len(self.working) + len(self.waiting)
            if self.per_minute is not None:
                late = self.sent[self.per_minute :]
                assert all(b - a >= 60 for a, b in zip(self.sent, late, strict=False)), "a written limit was passed"
            in_flight = sum(candidate.option == "c" for _, candidate in self.working)
            assert self.spent <= self.cap + max(in_flight, self.most_over)
            self.most_over = max(in_flight, self.most_over) if self.spent < self.cap else self.most_over

    @rule()
    def no_breaker_is_stuck(self) -> None:
        """Once everybody who works has left, and the longest pause and limit are over, every option is asked again."""
        for way, _ in self.working:
            self.core.left(way)
            self.end(way)
        self.working.clear()
        later = self.now + max(routing.LONGEST_OPEN_S, 21.0) + 1
        for place, name in enumerate(OPTIONS):
            alone = [Candidate(f"t/{name}", name, PROVIDERS[name])]
            way = Request(later + 10 + place)
            assert isinstance(self.core.decide(way, alone, now=later), Try), name
            self.core.left(way)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
