"""A fake model: takes the time it is scripted to take, answers, hangs or dies."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from taskrouter.backends.fake_script import FakeScript, answer
from taskrouter.backends.sleep import told, why_awake
from taskrouter.errors import CallFailed, ModelDied, UnsupportedVerb
from taskrouter.types import Charges, Footprint, ModelKey, ModelRequest
from taskrouter.verbs import STREAMING_VERBS, ChatAnswer, ChatChunk


class FakeWeights:
    """What ``raw`` gives out. As with real weights, the bytes come back only when nobody refers to it any more."""

    def __init__(self, label: str) -> None:
        self.label = label


@dataclass(eq=False, slots=True)
class Hold:
    """The bytes of one life of a model, from the start of its load until they are really free."""

    key: ModelKey
    label: str
    charges: Charges
    weights: FakeWeights | None = None
    watch: weakref.ref[FakeWeights] | None = None
    timer: asyncio.TimerHandle | None = None
    freed: asyncio.Future[None] | None = None
    missing: bool = False


class FakeModel:
    """A model that is scripted. ``calls`` counts those it was asked, ``active`` those at work now."""

    def __init__(self, request: ModelRequest, script: FakeScript, hold: Hold, note: Callable[[str], None]) -> None:
        self.label = request.label
        self.calls = 0
        self.active = 0
        self.script = script
        self.hold = hold
        why = why_awake(request) or (None if script.can_sleep else "its script doesn't say can_sleep")
        self._can_sleep = told(why, hold.charges)
        self._note = note
        self._at_work: set[asyncio.Future[None]] = set()
        self._death: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.unloaded = False
        self.awake: Charges = {}
        """Asleep: what it held awake."""
        self.doomed = False

    def __repr__(self) -> str:
        state = "asleep" if self.awake else f"{self.active} active"
        state = "unloaded" if self.unloaded else "dead" if self._death.done() else state
        return f"<FakeModel {self.label} {state}, {self.calls} calls>"

    @property
    def dead(self) -> bool:
        return self._death.done()

    @property
    def measured(self) -> Footprint | None:
        return Footprint(self.script.bytes)

    @property
    def verbs(self) -> frozenset[str]:
        return self.script.verbs

    @property
    def raw(self) -> FakeWeights | None:
        return self.hold.weights

    @property
    def info(self) -> Mapping[str, Any]:
        devices = tuple(self.hold.charges)
        return {"label": self.label, "bytes": self.script.bytes, "devices": devices, "can_sleep": self._can_sleep}

    async def call(self, verb: str, request: Any) -> Any:
        """Answer after ``call_s`` seconds. Cancelled, it works on for ``stop_s`` before it lets go."""
        with self._working(verb, streaming=False):
            result = answer(self.label, self.script, verb, request)
            await self._work(self.script.call_s, hang=self.script.hang == "call")
            if self.doomed:
                self.die()
            self._alive()
            return result

    async def stream(self, verb: str, request: Any) -> AsyncGenerator[Any, None]:
        """Answer word by word; what is scripted to hang or die does so after the first word."""
        with self._working(verb, streaming=True):
            chunks = list(_chunks(answer(self.label, self.script, verb, request)))
            for place, chunk in enumerate(chunks):
                if place and self.doomed:
                    self.die()
                await self._work(self.script.call_s / len(chunks), hang=place > 0 and self.script.hang == "call")
                try:
                    yield chunk
                except GeneratorExit:
                    await work_on(self.script.stop_s)
                    raise

    async def wait_dead(self) -> Exception:
        """The error the model died of; waits for ever for one that lives."""
        return await asyncio.shield(self._death)

    def die(self) -> None:
        """Die now: calls at work end in ``ModelDied``; the bytes stay until the model is unloaded."""
        if not self._death.done():
            self._death.set_result(ModelDied(f"{self.label} died; the next request loads it again"))
            self._note("died")
        self.wake()

    def wake(self) -> None:
        for done in self._at_work:
            finish(done)

    def _alive(self) -> None:
        if self.unloaded:
            raise ModelDied(f"{self.label} was used after it was unloaded; get the model from the manager again")
        if self._death.done():
            raise ModelDied(f"{self.label} died while answering; the next request loads it again")

    @contextmanager
    def _working(self, verb: str, *, streaming: bool) -> Iterator[None]:
        if verb not in self.script.verbs or (verb in STREAMING_VERBS) is not streaming:
            how = "stream" if streaming else "answer"
            raise UnsupportedVerb(f"{self.label} can't {how} {verb}; it can be asked {', '.join(sorted(self.verbs))}")
        self._alive()
        if self.awake:
            self._note("call-asleep")
            raise CallFailed(f"{self.label} was asked to {verb} while it slept")
        self.calls += 1
        self.active += 1
        self._note("call-start")
        outcome = "call-failed"
        try:
            yield
            outcome = "call-end"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "call-cancelled"
            raise
        finally:
            self.active -= 1
            self._note(outcome)

    async def _work(self, seconds: float, *, hang: bool) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._at_work.add(done)
        timer = None if hang else loop.call_later(seconds, finish, done)
        try:
            self._alive()
            await done
        except asyncio.CancelledError:
            await work_on(self.script.stop_s)
            raise
        finally:
            self._at_work.discard(done)
            if timer is not None:
                timer.cancel()
        self._alive()


def _chunks(whole: ChatAnswer) -> Iterator[ChatChunk]:
    words = whole.text.split(" ")
    for place, word in enumerate(words):
        yield ChatChunk(word if place == len(words) - 1 else word + " ")
    yield ChatChunk("", whole.finish_reason, whole.usage)


def finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def work_on(seconds: float) -> None:
    """Go on for so long, however often the caller is cancelled: work that has been told to stop and hasn't yet."""
    if not seconds:
        return
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, finish, stopped)
    while not stopped.done():
        # Nothing is swallowed: whoever waits here raises the first cancellation again.
        try:
            await asyncio.shield(stopped)
        except asyncio.CancelledError:
            continue
