"""A model that an engine serves: calls over HTTP, and how its death or its silence is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from taskrouter.backends.engines import openai
from taskrouter.backends.engines.adapter import Adapter, KvCache
from taskrouter.backends.engines.api import Api, Broken
from taskrouter.backends.engines.launch import Place
from taskrouter.backends.engines.supervisor import Process, ended
from taskrouter.errors import CallFailed, ModelDied, UnsupportedVerb
from taskrouter.types import Footprint, ModelRequest
from taskrouter.verbs import STREAMING_VERBS

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
    ) -> None:
        self.request = request
        self.process = process
        self.api = api
        self.places = places
        self.pids = frozenset(pids)
        """Its processes when it was ready."""
        self._adapter = adapter
        self._name = name
        self._measured = measured
        self._killed = False
        facts: dict[str, Any] = {"engine": adapter.framework, "pid": process.pid, "log": str(process.output.path)}
        if kv_cache is not None:
            facts["kv_cache_tokens"] = kv_cache.tokens
            facts["kv_cache_bytes"] = kv_cache.bytes
        self._info = MappingProxyType(facts)

    def __repr__(self) -> str:
        return f"<EngineModel {self.request.label} {self._adapter.framework} pid {self.process.pid}>"

    @property
    def measured(self) -> Footprint | None:
        return self._measured

    @property
    def verbs(self) -> frozenset[str]:
        return self._adapter.verbs(self.request)

    @property
    def raw(self) -> Endpoint:
        return Endpoint(self.api.base_url, self._name, self.api.key)

    @property
    def info(self) -> Mapping[str, Any]:
        return self._info

    async def call(self, verb: str, request: Any) -> Any:
        """Answer one request. Cancelled, the connection is closed, which is how engines are told to stop."""
        if verb in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self.request.label}: {verb} answers in pieces; use stream()")
        path, body = openai.body_of(verb, request, self._name)
        async with self._telling_death():
            return openai.answer_of(verb, await self.api.call(path, body), self.request.label)

    async def stream(self, verb: str, request: Any) -> AsyncGenerator[Any, None]:
        """Answer in pieces, each as it comes."""
        if verb not in STREAMING_VERBS:
            raise UnsupportedVerb(f"{self.request.label}: {verb} answers at once; use call()")
        path, body = openai.body_of(verb, request, self._name)
        if verb == "stream_request":
            body = {"stream": True, **(body or {})}
        async with self._telling_death(), aclosing(self.api.events(path, body or {})) as events:
            if verb == "stream_request":
                async for data in events:
                    yield data
            else:
                async for chunk in openai.chunks_of(events, self.request.label):
                    yield chunk

    @asynccontextmanager
    async def _telling_death(self) -> AsyncIterator[None]:
        """Turn a broken connection into what it means: the engine died, or only this call failed."""
        try:
            yield
        except Broken as error:
            exited = self.process.exited
            if not exited.done():
                await asyncio.wait({exited}, timeout=DEATH_BOUND_S)
            if exited.done():
                raise self.death() from error
            text = f"{self.request.label}: the engine broke the connection off and lives on ({error})"
            raise CallFailed(text) from error

    def death(self) -> ModelDied:
        """What the engine's first process ended with, and its last words."""
        status = self.process.exited.result()
        return ModelDied(
            f"{self.request.label}: its engine {ended(status)}; the next request starts it again. "
            f"{last_words(self.process)}"
        )

    async def wait_dead(self) -> Exception:
        """The error, once the engine has died or has been silent for ``hang_timeout_s``."""
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
            # Looks are counted, not seconds: a machine that slept through the timeout has not found its engine hung.
            moved, seen = await self._moved(seen, interval)
            silent = 0 if moved else silent + 1
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


def last_words(process: Process, count: int = 12) -> str:
    """The last lines an engine printed, and where the rest is."""
    tail = process.output.tail(count)
    said = f"Its last lines:\n{tail}\n" if tail else "It printed nothing. "
    return f"{said}All of them: {process.output.path}"
