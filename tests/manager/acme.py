"""A provider of external APIs that a test scripts: a plug-in like any other, with no network behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from taskrouter.backends.external.base import Call, Endpoint, Takes
from taskrouter.errors import TaskRouterError
from taskrouter.verbs import ChatAnswer, ChatChunk, Usage

OPTION = {"model_id": "acme-1", "framework": "external_api", "provider": "acme"}


class AcmeConnection:
    """Answers ``acme``, after ``delay_s``; what stands in ``fails`` is raised first, one for each call.

    A stream breaks after two pieces where ``breaks`` says with what.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.fails: list[TaskRouterError] = []
        self.delay_s = 0.0
        self.pause_s = 0.0
        """Before each piece but the first."""
        self.breaks: TaskRouterError | None = None
        self.asked: list[str] = []
        self.calls: list[Call] = []
        self.requests: list[Any] = []
        self.at_work = 0
        self.most_at_work = 0
        self.closed = 0

    async def _work(self, call: Call) -> None:
        self.asked.append(call.who)
        self.calls.append(call)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await asyncio.sleep(self.delay_s)
            if self.fails:
                raise self.fails.pop(0)
        finally:
            self.at_work -= 1

    async def call(self, verb: str, request: Any, call: Call) -> Any:
        self.requests.append(request)
        await self._work(call)
        return ChatAnswer("acme", usage=Usage(1000, 200))

    async def stream(self, verb: str, request: Any, call: Call) -> AsyncIterator[Any]:
        await self._work(call)
        for place, sign in enumerate("acme"):
            if place == 2 and self.breaks is not None:
                raise self.breaks
            await asyncio.sleep(self.pause_s if place else 0)
            yield ChatChunk(sign)
        yield ChatChunk("", "stop", Usage(1000, 200))

    async def close(self) -> None:
        self.closed += 1


class Acme:
    """The provider. ``connections`` are the clients it made."""

    key_env = "ACME_KEY"

    def __init__(self) -> None:
        self.connections: list[AcmeConnection] = []
        self.next = AcmeConnection(Endpoint(None, None))

    @property
    def only(self) -> AcmeConnection:
        """The client that calls go through; before the first call, the one that will be."""
        return self.next

    def takes(self, model_id: str) -> Takes:
        return Takes(frozenset({"chat", "stream_chat"}), frozenset({"image"}))

    def base_url(self, api_endpoint: str) -> str:
        return api_endpoint

    def connect(self, endpoint: Endpoint) -> AcmeConnection:
        if not self.connections:
            self.next.endpoint = endpoint
            self.connections.append(self.next)
        else:
            self.connections.append(AcmeConnection(endpoint))
        return self.connections[-1]


class Purse:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.spent = 0.0

    async def record(self, **facts: Any) -> None:
        self.records.append(facts)
        self.spent += facts["usd"]

    def spent_today(self, provider: str) -> float:
        return self.spent

    async def close(self) -> None:
        """Nothing is held."""
