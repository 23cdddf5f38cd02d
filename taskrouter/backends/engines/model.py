"""A model that an engine serves: calls over HTTP, and how its death or its silence is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from taskrouter.backends.engines import openai
from taskrouter.backends.engines.adapter import Adapter, KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.launch import Place
from taskrouter.backends.engines.outside import is_control
from taskrouter.backends.engines.supervisor import Process, ended, last_words
from taskrouter.backends.sleep import told
from taskrouter.errors import BadInput, CallFailed, ModelDied, TaskRouterError, UnsupportedVerb
from taskrouter.media.inline import inlined, is_needed
from taskrouter.media.showing import Showing
from taskrouter.types import Charges, Footprint, ModelRequest
from taskrouter.verbs import STREAMING_VERBS, RawRequest


class Rest(Enum):
    """Whether it serves; the value completes "it is …"."""

    AWAKE = "awake"
    BETWEEN = "between sleeping and waking"
    ASLEEP = "asleep"


DEATH_BOUND_S = 2.0
"""A connection breaks before the end of the process behind it is known; so long is waited to tell which it was."""
PROBES = 4
"""An engine is hung when so many looks in a row, spread over hang_timeout_s, find nothing that moves."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine is reached by other clients, for as long as the lease is held: ``raw`` of an engine's model."""

    base_url: str
    model: str
    api_key: str

    def __repr__(self) -> str:
        return f"<Endpoint {self.base_url} {self.model}>"


class EngineModel:
    """The ``LoadedModel`` of an engine."""

    def __init__(
        self,
        request: ModelRequest,
        adapter: Adapter,
        process: Process,
        api: Api,
        name: str,
        places: tuple[Place, ...],
        *,
        pids: Iterable[int],
        measured: Footprint | None,
        kv_cache: KvCache | None,
        weight_bytes: int = 0,
        showing: Showing | None = None,
    ) -> None:
        self.request = request
        self.process = process
        self.api = api
        self.places = places
        self.pids = frozenset(pids)
        """Its processes when it was ready."""
        self.weight_bytes = weight_bytes
        """Of its weights over all devices together; 0 where that isn't known."""
        self.rest = Rest.AWAKE
        self.residue: Charges = {}
        """What it holds on its devices while it is asleep."""
        self.name = name
        self._adapter = adapter
        self._showing = showing
        self._measured = measured
        self._unseen = asyncio.Event()
        self._unseen.set()
        facts: dict[str, Any] = {"engine": adapter.framework, "pid": process.pid, "log": str(process.output.path)}
        facts["can_sleep"] = told(adapter.why_awake(request), [place.device for place in places])
        if kv_cache is not None:
            facts["kv_cache_tokens"] = kv_cache.tokens
            facts["kv_cache_bytes"] = kv_cache.bytes
        self._info = MappingProxyType(facts)

    def __repr__(self) -> str:
        asleep = "" if self.rest is Rest.AWAKE else f" {self.rest.value}"
        return f"<EngineModel {self.request.label} {self._adapter.framework} pid {self.process.pid}{asleep}>"

    @property
    def measured(self) -> Footprint | None:
        return self._measured

    @property
    def verbs(self) -> frozenset[str]:
        return self._adapter.verbs(self.request)

    @property
    def raw(self) -> Endpoint:
        return Endpoint(self.api.base_url, self.name, self.api.key)

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request. Cancelled, the connection is closed, which is how engines are told to stop."""
        if verb in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self.request.label}: {verb} answers in pieces; use stream()")
        path, body = self._asked(verb, await self._inlined(request))
        async with self._telling_death():
            data = await self.api.call(path, body, anybodys=verb == "request")
            return openai.answer_of(verb, data, self.request.label)

    async def stream(self, verb: str, request: Any) -> AsyncGenerator[Any, None]:
        """Answer in pieces, each as it comes."""
        if verb not in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self.request.label}: {verb} answers at once; use call()")
        path, body = self._asked(verb, await self._inlined(request))
        raw = verb == "stream_request"
        if raw:
            body = {"stream": True, **(body or {})}
        async with self._telling_death(), aclosing(self.api.events(path, body or {}, anybodys=raw)) as events:
            if raw:
                async for data in events:
                    yield data
            else:
                async for chunk in openai.chunks_of(events, self.request.label):
                    yield chunk

    async def _inlined(self, request: Any) -> Any:
        """A conversation with its media inside, as the engine takes them."""
        if not is_needed(request, self._showing):
            return request
        return await asyncio.to_thread(inlined, request, self._showing)

    async def passed_whole(self, path: str, write: Callable[[str], bytes]) -> bytes:
        """The bytes of the engine's own answer to a POST; the rest is as in ``passed``."""
        if self.rest is not Rest.AWAKE:
            raise CallFailed(f"{self.request.label} was asked for {path} while it is {self.rest.value}")
        try:
            return await self.api.post(path, write(self.name))
        except Broken as error:
            raise await self._meaning(error) from error

    @asynccontextmanager
    async def passed(self, path: str, write: Callable[[str], bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of the engine's own answer to a POST, as they come: ``write`` makes the body of the model's name.

        Raises as ``call`` does, for a refusal and for a connection that breaks inside.
        """
        if self.rest is not Rest.AWAKE:
            raise CallFailed(f"{self.request.label} was asked for {path} while it is {self.rest.value}")
        async with self._telling_death(), self.api.pieces(path, write(self.name)) as pieces:
            yield pieces

    def _asked(self, verb: str, request: Any) -> tuple[str, dict[str, Any] | None]:
        """The path and body of a call. Raises ``BadInput``, and ``CallFailed`` while it sleeps."""
        if self.rest is not Rest.AWAKE:
            raise CallFailed(f"{self.request.label} was asked to {verb} while it is {self.rest.value}")
        path, body = openai.body_of(verb, request, self.name)
        if isinstance(request, RawRequest) and is_control(self.api.path_of(path), self._adapter.controls(self.request)):
            raise BadInput(f"{self.request.label}: {path} is for taskrouter to call: it changes what the engine serves")
        return path, body

    def took(self) -> Charges:
        """What it holds on each of its devices, as far as that is known."""
        if self.residue or self.rest is Rest.ASLEEP:
            return self.residue  # of one that didn't wake it is the least
        measured = self._measured
        return {place.device: measured.device_bytes if measured else place.granted for place in self.places}

    @asynccontextmanager
    async def _telling_death(self) -> AsyncIterator[None]:
        """Turn a broken connection into what it means: the engine died, or only this call failed."""
        try:
            yield
        except Broken as error:
            raise await self._meaning(error) from error

    async def _meaning(self, error: Broken) -> TaskRouterError:
        """Whether a broken connection is the engine's death."""
        exited = self.process.exited
        if not exited.done():
            await asyncio.wait({exited}, timeout=DEATH_BOUND_S)
        if exited.done():
            return self.death()
        return CallFailed(f"{self.request.label}: the engine broke the connection off and lives on ({error})")

    def death(self) -> ModelDied:
        """What the engine's first process ended with, and its last words."""
        status = self.process.exited.result()
        return ModelDied(
            f"{self.request.label}: its engine {ended(status)}; the next request starts it again. "
            f"{last_words(self.process)}"
        )

    async def look_away(self) -> None:
        """Begin to sleep: no look at its health starts any more, and one under way ends first."""
        self.rest = Rest.BETWEEN
        await self._unseen.wait()

    async def wait_dead(self) -> Exception:
        """The error, once the engine has died or has been silent for ``hang_timeout_s``.

        One that sleeps may be silent: SGLang's health check would have it compute. That it wakes is bounded instead.
        """
        interval = max(self.request.hang_timeout_s / PROBES, 0.05)
        silent = 0
        seen: tuple[object, float] = (None, self.api.heard_of_calls)
        loop = asyncio.get_running_loop()
        next_look = loop.time()
        while True:
            # A look may take as long as the time between two; then the next begins at once.
            next_look = max(next_look + interval, loop.time())
            await asyncio.wait({self.process.exited}, timeout=next_look - loop.time())
            if self.process.exited.done():
                return self.death()
            self.process.note()
            if self.rest is not Rest.AWAKE:
                silent = 0
                continue
            # Looks are counted, not seconds: a machine that slept through the timeout has not found its engine hung.
            self._unseen.clear()
            try:
                moved, seen = await self._moved(seen, interval)
            finally:
                self._unseen.set()
            silent = 0 if moved or self.rest is not Rest.AWAKE else silent + 1
            if silent >= PROBES:
                return ModelDied(
                    f"{self.request.label}: its engine has been silent for {self.request.hang_timeout_s:g} s "
                    f"(engines.{self._adapter.framework}.hang_timeout_s) and is given up; the next request starts it "
                    f"again. {last_words(self.process)}"
                )

    async def _moved(self, before: tuple[object, float], timeout_s: float) -> tuple[bool, tuple[object, float]]:
        """Whether it has said or done anything since the last look, and what the next look is compared with."""
        healthy = await self.api.healthy(self._adapter.health(self.request), timeout_s)
        busy = self.api.in_flight > 0
        # A front that answers while requests are under way doesn't show that the core behind it works.
        progress = await self._adapter.progress(self.api) if healthy and busy else None
        now = (progress, self.api.heard_of_calls)
        moved = now[1] > before[1] or (healthy and (not busy or progress is None or progress != before[0]))
        return moved, now
